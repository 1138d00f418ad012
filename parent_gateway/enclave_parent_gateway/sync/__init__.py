"""`enclave sync`: the parent's end of the workspace's mirror, which decides what goes where.

The enclave's end answers questions about its folder and does single steps in it. What the two last
agreed on is known here only (`journal`): an enclave forgets, and is not believed.
Source: docs/spec/workspace.md.
"""
