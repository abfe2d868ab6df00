"""Graph to kernels. Begin with fusion.py and loop_ir.py.

    loop IR                loop_ir.py with index.py; text.py, parse.py, verify.py and run.py print it, parse it, check
                           it and run it
    which nodes share      fusion.py, with dependencies.py; chains.py, structure.py
    from nodes to loops    lowering.py, with placing.py and expand.py; lower_contraction.py, column_sums.py,
                           scatters.py; chain_lowering.py, chain_passes.py, dead_places.py
    simpler, proved        collapse.py, ranges.py
    what runs when         waits.py, order.py, bundling.py
    where values are       memory.py, in_place.py, aliasing.py
    for people             naming.py, origins.py, traffic.py
"""
