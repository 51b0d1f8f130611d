"""One fresh process of bench/bench_cold_start.py: `cold_start_child.py ENGINE FOLDER THREADS TEXT`.

Written as a program that uses only this engine would be: nothing is imported that the engine does not need. Prints one
JSON line: seconds from the script's first statement to the answer, resident and peak memory then, and the answer.
"""

import time

BEGIN = time.perf_counter()

import sys  # noqa: E402


def approxrt_answer(folder, threads, text):
    """Do what a user of approxrt writes, and return (the model, the logits)."""
    import approxrt

    model = approxrt.load(folder, threads=threads)
    return model, model.logits(text)[0]


def onnxruntime_answer(folder, threads, text):
    """The same from a folder with model.onnx and tokenizer.json."""
    import numpy as np
    import onnxruntime
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(f"{folder}/tokenizer.json")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    session = onnxruntime.InferenceSession(f"{folder}/model.onnx", options, providers=["CPUExecutionProvider"])
    ids = np.array([tokenizer.encode(text).ids])
    return (session, tokenizer), session.run(None, {"input_ids": ids, "attention_mask": np.ones_like(ids)})[0][0]


def main(engine, folder, threads, text):
    """Answer, then say what it took."""
    run = {"approxrt": approxrt_answer, "onnxruntime": onnxruntime_answer}.get(engine)
    # The model is kept: memory is that of a process that goes on to serve.
    kept, logits = run(folder, int(threads), text) if run else (None, [])
    answer = [float(value) for value in logits]
    seconds = time.perf_counter() - BEGIN
    with open("/proc/self/status") as status:
        kilobytes = {line.split(":")[0]: int(line.split()[1]) for line in status if line.startswith(("VmRSS", "VmHWM"))}
    import json

    memory = {"resident_mb": kilobytes["VmRSS"] * 1024 / 1e6, "peak_mb": kilobytes["VmHWM"] * 1024 / 1e6}
    print(json.dumps({"seconds": seconds, **memory, "answer": answer}), flush=True)
    del kept


main(*sys.argv[1:])
