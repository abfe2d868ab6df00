"""Kernels to LLVM IR. Begin with kernels.py, which picks the template of a kernel, then contraction.py.

    any value            emitter.py; scopes.py (where code goes), memory_access.py, arithmetic.py, accumulators.py,
                         constants.py, lanes.py, remainder.py
    exp, log, sin, ...   vector_math.py; vector_math_exponential.py, vector_math_logarithm.py,
                         vector_math_trigonometric.py, vector_math_lanes.py, vector_math_coefficients.py
    loop kernels         loops.py; kept_rows.py
    contractions         contraction_blocking.py plans what contraction.py emits, fed by fused_contraction.py;
                         micro_kernel.py, contraction_packing.py, panels.py, column_sums.py
    with an image        window_blocking.py, filter_blocking.py plan what window_contraction.py, filter_contraction.py
                         emit in the loops of window_template.py, fed by window_kernel.py;
                         filter_transforms.py, finishing.py
    chains               chain_blocking.py plans what chain.py, or chain_streaming.py, emits of chain_template.py,
                         chain_columns.py, chain_contractions.py, chain_rows.py, chain_sums.py
    whole programs       entry.py, traced_entry.py
    everywhere           control_flow.py, vector_target.py; locations.py, line_tables.py (which line code is for)
"""
