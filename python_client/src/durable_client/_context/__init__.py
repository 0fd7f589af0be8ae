"""What runs the code of a workflow: its context, its steps and waits, and what becomes of them."""
