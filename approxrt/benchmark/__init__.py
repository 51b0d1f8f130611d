"""Side-by-side benchmarks: approxrt and its peers on the same checkpoint, inputs and threads.

`engines` names them, `*_engine` holds one family each, `measure` times them in turns,
`report` says what came out. Importing this package loads none of the peers.
"""
