#!/usr/bin/env python3
"""The direction of dependencies between the folders of src/."""
import os
import subprocess
import sys

top = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..")
sys.exit(subprocess.run([os.path.join(top, "tools", "check-includes")]).returncode)
