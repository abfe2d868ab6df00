"""The compiler: graph, differentiation, passes, scheduling and code generation. Start with `pipeline.py`."""
