"""Supervised fine-tuning: the cold start on demonstrations.

This module is the command; `learners.sft.training` does the work.
"""

from __future__ import annotations

import os
import sys

from learners.console import parse_options, report_errors
from learners.sft.config import Config


def main() -> None:
    """Parse the command line and train."""
    arguments = sys.argv[1:]
    config = parse_options("learners.sft", Config.at("laptop"), arguments, __doc__)
    with report_errors("learners.sft", arguments, "cold start"):
        from learners.sft.training import cold_start  # loads torch, which --help does not need

        cold_start(config)


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    main()
