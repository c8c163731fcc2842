"""ReFT in the format of PEFT's method comparison: experiment folders, and what runs them beside PEFT's own."""
