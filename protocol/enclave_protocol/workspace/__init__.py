"""The workspace's mirror: what both of its ends share.

Names, messages, block signatures, and a folder that is reached by descriptors only. Either end
takes the other for hostile, so both use exactly this code for what leaves their root and what does
not (docs/spec/workspace.md, docs/decisions/workspace_tree_in_protocol.md).
"""
