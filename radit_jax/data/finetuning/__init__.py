"""The datasets of D_L and D_R: where they come from, their forms, and their mixture."""
