"""The trained tokenizer has the released layout: same files, same id order, as the reference's tiny checkpoint."""

import json

import pytest

from mindglm.data import tokenizer_training as tt
from mindglm.errors import UserError
from mindglm.models.ar_generator.processor import Processor
from tests.data.pictures import write_captions
from tests.golden import REPO

CAPTIONS = [{"file": "x", "caption": f'a {colour} sign that says "{word}"'}
            for colour in ("red", "teal", "purple", "orange") for word in ("OPEN", "EXIT", "FIRE", "TAXI", "STOP")]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tokenizer")
    captions = write_captions(folder, CAPTIONS + [{"file": "y", "caption": "zyzzyva " * 50, "split": "held_out"}])
    tt.run(captions, folder, codes=64, vision_vocab=80, vocab_size=392)
    return folder


def test_ids_are_codes_then_text_then_control_tokens(made):
    tokenizer = Processor.from_pretrained(made).tokenizer
    assert tokenizer.get_vocab_size() == 392
    assert [tokenizer.token_to_id(f"<|dit_token_{k}|>") for k in (0, 64, 79)] == [0, 64, 79]
    assert [tokenizer.token_to_id(token) for token in tt.CONTROL_TOKENS] == list(range(376, 392))
    assert "zyzzyva" not in "".join(tokenizer.get_vocab()), "held-out captions must not shape the vocabulary"


def test_prompts_survive_and_are_short(made):
    processor = Processor.from_pretrained(made)
    text = 'a red sign that says "OPEN" été 漢'
    assert processor.tokenizer.decode(processor.tokenizer.encode(text).ids) == text
    ids = processor.prompt_ids('a red sign that says "OPEN"', 128, 128)
    assert ids[-1] == 64 and len(ids) < 30
    assert ids.count(processor.tokenizer.token_to_id("<sop>")) == 2


def test_files_are_those_of_the_reference(made):
    for name in ("tokenizer/added_tokens.json", "tokenizer/tokenizer_config.json", "processor/preprocessor_config.json",
                 "processor/tokenizer_config.json"):
        assert json.loads((made / name).read_text()) == json.loads((REPO / name).read_text()), name
    assert (made / "processor/chat_template.jinja").read_text() == (REPO / "processor/chat_template.jinja").read_text()
    ours, reference = (json.loads((root / "processor/tokenizer.json").read_text()) for root in (made, REPO))
    assert ours.keys() == reference.keys() and ours["pre_tokenizer"] == reference["pre_tokenizer"]
    assert ours["decoder"] == reference["decoder"] and len(ours["added_tokens"]) == len(reference["added_tokens"])


def test_impossible_sizes_are_user_errors(tmp_path):
    captions = write_captions(tmp_path, CAPTIONS)
    with pytest.raises(UserError, match="expected at least 352"):
        tt.run(captions, tmp_path, 64, 80, 340)
    with pytest.raises(UserError, match="text tokens"):
        tt.run(captions, tmp_path, 64, 80, 5000)
    with pytest.raises(UserError, match="start and end"):
        tt.run(captions, tmp_path, 64, 65, 400)
    with pytest.raises(UserError, match="captions.jsonl:1"):
        tt.run(write_captions(tmp_path, [{"file": "x"}]), tmp_path, 64, 80, 400)
    with pytest.raises(UserError, match="not a file"):
        tt.run(tmp_path / "none", tmp_path, 64, 80, 400)
