"""An image's first process: from the kernel's hand-over to a running supervisor.

It runs before anything of anybody else does, and stays as process 1. Settings are measured with the
image; nothing that the parent says is read here.
"""
