"""Lets the tests of this folder import their shared strategies."""

import os
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
