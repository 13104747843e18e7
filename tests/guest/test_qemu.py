#!/usr/bin/env python3
"""The kernels of the older modes, and the test device's, on QEMU's TCG: where it is right it agrees. Without QEMU nothing is tested."""
import glob
import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
# QEMU does not care how Vitro was built.
build = os.environ.get("BUILD", "build")
if os.path.basename(os.path.normpath(build)) != "build" or not shutil.which("qemu-system-x86_64"):
    print("guest/qemu: 0 passed, 0 failed")
    sys.exit(0)
kernels = sorted(os.path.basename(f)[:-2] for f in glob.glob(os.path.join(HERE, "legacy", "*.c")))
sys.exit(subprocess.run([os.path.join(HERE, "run"), "--qemu", "--build", build, *kernels, "testdev"]).returncode)
