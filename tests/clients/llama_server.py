"""llama.cpp's own server, on a port of its choosing, until standard input ends: `llama_server.py MODEL.gguf`."""

import sys

import xllamacpp

params = xllamacpp.CommonParams()
params.model.path = sys.argv[1]
params.model_alias = {"smol"}
params.n_parallel = 2
params.n_ctx = 2048
params.cpuparams.n_threads = 1
params.port = 0
params.endpoint_slots = True
params.endpoint_metrics = True
params.warmup = False
server = xllamacpp.Server(params)
print(server.listening_address, flush=True)
sys.stdin.read()
