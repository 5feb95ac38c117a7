"""What a run did, step by step, in a form that two runs can be held against each other by (NumPy only)."""

from mindglm.ledger.chain import Chain, read
from mindglm.ledger.digest import Digest
from mindglm.ledger.witness import Witness

__all__ = ["Chain", "Digest", "Witness", "read"]
