"""Upgrade or migrate the vision model you run in production, and prove that the new one may replace it.

Threads that wait for each other sleep instead of spinning, unless you say otherwise: on a machine with other work, spinning
keeps the very thread from running that is waited for (measured on two busy cores: twice the training speed), and on an idle
machine it makes no difference. It must be set before PyTorch is imported.
"""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
