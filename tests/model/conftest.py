"""Settings of the model tests. Their helpers are beside them and in tests/unit."""

import os
import sys
from pathlib import Path

from hypothesis import settings

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent / "unit")]

import cache_box  # noqa: E402, F401 (from the folders above; registers the profiles)

settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
