"""Every table and figure of the paper as cells that are made once, and what they say of its claims."""
