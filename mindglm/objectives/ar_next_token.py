"""Next-code loss of the AR generator (reference section 5.2).

A sequence is prompt ids, preview codes, large codes; the logits at the last prompt id predict the first preview code,
those at the last large code predict the image end id. Prompt ids carry no loss. Preview codes weigh `preview_weight`.
Without `progressive` there are no preview codes, and the prompt names the large grid only, as with source images.

Shape letters: B batch, S padded sequence, C classes of the head.
"""

from collections.abc import Callable

import numpy as np
from mindspore import Tensor, nn

from mindglm import ops
from mindglm.errors import UserError
from mindglm.models.ar_generator import stages
from mindglm.models.ar_generator.model import ArGenerator
from mindglm.models.ar_generator.positions import training_positions
from mindglm.objectives.parts import Parts, StageList
from mindglm.recipe.models import ArGeneratorConfig

IGNORE = -100


class Network(nn.Cell):
    """(ids, positions, labels, weights) -> (weighted sum of nll, sum of weights)."""

    def __init__(self, model: ArGenerator):
        super().__init__(auto_prefix=False)  # keeps the released parameter names
        self.model = model

    def construct(self, ids_BS, positions_3BS, labels_BS, weights_BS):
        return weighted_sums(self.model(ids_BS, positions_3BS), labels_BS, weights_BS)

    def predict(self, ids_BS, positions_3BS, *_):
        """Logits (B, S, C) of a batch."""
        return self.model(ids_BS, positions_3BS)

    def nll(self, ids_BS, positions_3BS, labels_BS):
        """Nats per position (B, S) float32, 0 where there is no label."""
        return position_nll(self.model(ids_BS, positions_3BS), labels_BS)


def weighted_sums(logits_BSC, labels_BS, weights_BS):
    """(weighted sum of nll, sum of weights) from the logits."""
    return (position_nll(logits_BSC, labels_BS) * weights_BS).sum(), weights_BS.sum()


def position_nll(logits_BSC, labels_BS):
    """Nats per position (B, S) float32, 0 where there is no label."""
    return ops.token_nll(logits_BSC.reshape(-1, logits_BSC.shape[-1]), labels_BS.reshape(-1)).reshape(labels_BS.shape)


def without_preview(prompt: np.ndarray, sample_id: str = "?") -> np.ndarray:
    """The ids of a prompt without its second grid: text, large grid, image start.

    A prompt ends in two grids, each closed by the same id, and the image start (`Processor.prompt_text`). Raises
    UserError for one that does not.
    """
    closed = np.flatnonzero(prompt[:-1] == prompt[-2]) if len(prompt) > 1 else ()
    if len(closed) < 2:
        raise UserError(f"sample {sample_id}: its prompt does not end in two grids, of which objective.progressive: "
                        "false leaves the second one out; prepare the data with this version")
    return np.append(prompt[:closed[-2] + 1], prompt[-1])


class ArNextToken:
    """Trains the decoder and its head; samples give prompt_ids, preview_codes (ph, pw), large_codes (h32, w32)."""

    def __init__(self, model_config: ArGeneratorConfig, options, seed: int, parts: Parts | None = None):
        """parts: the pipeline stages that this process holds in place of the whole model; the loss is then
        `stage_loss` after the last of them, and `network` holds parameters only."""
        self.config, self.options = model_config, options
        if parts is None:
            self.model = ArGenerator(model_config)
            self.network = Network(self.model)
        else:
            self.model = self.network = StageList(
                [stages.Stage(model_config, start, stop, parts.recompute) for start, stop in parts.ranges])
        ops.init_parameters(self.model, seed)

    def collate(self, samples: list[dict], draw: Callable[[int, str], np.random.Generator],
                training: bool) -> tuple[np.ndarray, ...]:
        """Ids, positions, labels (already shifted), weights of a batch, padded on the right.

        Returns:
            int32 (B, S), int32 (3, B, S), int32 (B, S), float32 (B, S); S a multiple of `pad_to_multiple`.
        """
        rows = [self.row(sample, self._prompt(sample, i, draw, training)) for i, sample in enumerate(samples)]
        multiple = self.options.pad_to_multiple
        length = -(-max(len(ids) for ids, *_ in rows) // multiple) * multiple
        batch = len(rows)
        ids = np.zeros((batch, length), np.int32)
        positions = np.zeros((3, batch, length), np.int32)
        labels = np.full((batch, length), IGNORE, np.int32)
        weights = np.zeros((batch, length), np.float32)
        for b, (row_ids, row_positions, row_labels, row_weights) in enumerate(rows):
            n = len(row_ids)
            ids[b, :n], positions[:, b, :n] = row_ids, row_positions
            labels[b, :n], weights[b, :n] = row_labels, row_weights
        return ids, positions, labels, weights

    def row(self, sample: dict, prompt: np.ndarray) -> tuple[np.ndarray, ...]:
        """One unpadded sequence: ids (n,), positions (3, n), labels (n,), weights (n,)."""
        preview, large = np.asarray(sample["preview_codes"]), np.asarray(sample["large_codes"])
        grids = [large.shape, preview.shape]
        if not self.options.progressive:
            grids, preview, prompt = grids[:1], preview[:0], without_preview(prompt, sample.get("id", "?"))
        codes = np.concatenate([preview.reshape(-1), large.reshape(-1)]).astype(np.int32)
        if codes.size and (codes.min() < 0 or codes.max() >= self.config.num_codes):
            raise UserError(f"sample {sample.get('id', '?')}: codes reach {codes.max()}, but the model has "
                            f"{self.config.num_codes} codes; prepare the data with this model's tokenizer")
        start_id, vocabulary = self.config.image_start_token_id, self.config.text_config.vocab_size
        if prompt[-1] != start_id or prompt.max() >= vocabulary:
            raise UserError(f"sample {sample.get('id', '?')}: the prompt ends in id {prompt[-1]} and reaches "
                            f"{prompt.max()}, expected the image start id {start_id} and ids below {vocabulary}; "
                            "prepare the data with this model's processor")
        start = len(prompt) - 1  # the position whose logits predict the first code
        ids = np.concatenate([prompt, codes])
        labels = np.full(len(ids), IGNORE, np.int32)
        labels[start:] = np.append(codes, self.config.image_end_token_id)
        weights = np.zeros(len(ids), np.float32)
        weights[start:] = 1.0
        weights[start : start + preview.size] = self.options.preview_weight
        return ids, training_positions(len(prompt), grids), labels, weights

    @staticmethod
    def stage_inputs(batch: tuple[np.ndarray, ...]) -> stages.Inputs:
        """What the pipeline's stages read of a batch of `collate`."""
        return stages.Inputs(*batch[:2])

    @staticmethod
    def stage_loss(logits_BSC, batch: tuple[np.ndarray, ...]):
        """(loss_sum, weight_sum) from the output of the last stage."""
        return weighted_sums(logits_BSC, Tensor(batch[2]), Tensor(batch[3]))

    def _prompt(self, sample: dict, index: int, draw, training: bool) -> np.ndarray:
        """The sample's prompt ids, or those of the empty prompt with probability `prompt_dropout`."""
        if training and self.options.prompt_dropout > 0:
            if "empty_prompt_ids" not in sample:
                raise UserError("objective.prompt_dropout > 0 needs the ids of the empty prompt in every sample; "
                                "set it to 0 or prepare the data again")
            if draw(index, "prompt_dropout").random() < self.options.prompt_dropout:
                return np.asarray(sample["empty_prompt_ids"], np.int32)
        return np.asarray(sample["prompt_ids"], np.int32)

    def component_tensors(self) -> dict[str, Tensor]:
        """Released name -> Parameter."""
        return {parameter.name: parameter for parameter in self.model.get_parameters()}
