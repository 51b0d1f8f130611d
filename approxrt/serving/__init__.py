"""Serving: an HTTP server with the routes of several known ones, and objects that stand in for known libraries'.

`approxrt.serving.app` is the server, one core with thin adapters in `routes/`; `sentence_transformers` and `pipeline`
work in process; `ray` and `triton` put artifacts on many machines. Importing this package imports none of them.
"""
