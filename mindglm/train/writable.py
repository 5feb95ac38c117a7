"""An output folder that cannot be written when a run starts: the user's to mend, and told on all ranks at once."""

import os
from contextlib import contextmanager

from mindglm.errors import UserError
from mindglm.parallel import transport


def refusal(output_dir: str | os.PathLike, error: OSError) -> UserError:
    """The error for what the disk said."""
    return UserError(f"output_dir {output_dir} cannot be written ({error}); make room or the rights for it, or give "
                     "another one")


@contextmanager
def together(output_dir: str | os.PathLike):
    """Context in which ranks begin to write there: what one of them is refused is a UserError on all of them.

    Entered by all ranks; no collective inside, for a rank that is refused would not come to it.
    """
    refused = cause = None
    try:
        yield
    except OSError as error:
        refused, cause = str(refusal(output_dir, error)), error
    except UserError as error:
        refused, cause = str(error), error
    refused = next(filter(None, transport.gather_objects(refused)), None)
    if refused:
        raise UserError(refused) from cause
