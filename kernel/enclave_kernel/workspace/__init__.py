"""The enclave's end of the workspace's mirror: a process of its own that serves one folder.

It has a user of its own and sees nothing but the workspace; what comes over its stream is taken for
hostile, as is what the notebooks do in the workspace meanwhile (docs/spec/workspace.md).
"""
