"""How many examples Hypothesis tries: few and the same ones by default, more and random ones if a variable says so.

``make test-all`` sets ``LLMUX_HYPOTHESIS_EXAMPLES``; a larger number of your own searches longer.
"""

import os

from hypothesis import settings

EXAMPLES = os.environ.get("LLMUX_HYPOTHESIS_EXAMPLES", "")


def examples(count: int) -> settings:
    """Settings for a test of which this many examples are enough for every day."""
    return settings(max_examples=max(count, int(EXAMPLES or 0)), derandomize=not EXAMPLES, database=None, deadline=None)
