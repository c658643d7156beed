"""How long the simulated engine takes over everything it does."""

from dataclasses import dataclass


@dataclass(slots=True)
class Timings:
    """Durations in seconds; ``/control`` changes them while the engine runs."""

    first_token_seconds: float = 0.05
    token_seconds: float = 0.0
    full_batch_token_seconds: float = 0.0
    """In a full batch; the rate falls in a line from that of ``token_seconds``. 0: the batch costs nothing."""
    prefill_tokens_per_second: float = 0.0
    """0: the prompt's length costs nothing."""
    sleep_seconds: float = 0.0
    wake_seconds: float = 0.0
    reload_seconds: float = 0.1

    def before_token(self, batch_share: float = 0.0) -> float:
        """The delay before each token but the first; ``batch_share``: from 0 alone to 1 in a full batch."""
        if not self.full_batch_token_seconds or not self.token_seconds:
            return self.token_seconds
        alone, full = 1 / self.token_seconds, 1 / self.full_batch_token_seconds
        return 1 / (alone - (alone - full) * batch_share)

    def prefill_seconds(self, prompt_tokens: int) -> float:
        """How long the prompt is read, which is done for one after the other."""
        return prompt_tokens / self.prefill_tokens_per_second if self.prefill_tokens_per_second else 0.0
