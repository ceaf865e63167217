"""The twenty calls of tritonclient that a server of the Open Inference Protocol must answer.

usage: triton_calls.py HOST:PORT KEY MODEL; MODEL is a MiniLM: input_ids, attention_mask, token_type_ids INT64 [-1,-1] in,
last_hidden_state FP32 out. Prints a line for each call, and fails at the first that is wrong.
"""

import sys

import numpy as np
import tritonclient.http as triton
from tritonclient.utils import InferenceServerException

address, key, model = sys.argv[1:4]
headers = {"authorization": f"Bearer {key}"}
client = triton.InferenceServerClient(address, network_timeout=120.0, connection_timeout=120.0)
calls = 0


def call(name, check):
    global calls
    calls += 1
    result = check()
    assert result is not False and result is not None, f"call {calls}, {name}: {result!r}"
    print(f"{calls:2} {name}: ok", flush=True)
    return result


def tensors(binary):
    tokens = np.array([[101, 7592, 2088, 102]], dtype=np.int64)
    made = []
    for name, data in [
        ("input_ids", tokens),
        ("attention_mask", np.ones_like(tokens)),
        ("token_type_ids", np.zeros_like(tokens)),
    ]:
        tensor = triton.InferInput(name, data.shape, "INT64")
        tensor.set_data_from_numpy(data, binary_data=binary)
        made.append(tensor)
    return made


def infer(binary_in, binary_out):
    outputs = [triton.InferRequestedOutput("last_hidden_state", binary_data=binary_out)]
    # A copy: the client writes into the headers it is given.
    result = client.infer(model, tensors(binary_in), outputs=outputs, headers=dict(headers))
    return result.as_numpy("last_hidden_state")


def refused(work, *words):
    try:
        work()
    except InferenceServerException as error:
        assert all(word in str(error) for word in words), error
        return True
    return False


call("load", lambda: client.load_model(model, headers=headers) is None)
call("server live", lambda: client.is_server_live(headers=headers))
call("server ready", lambda: client.is_server_ready(headers=headers))
call("model ready", lambda: client.is_model_ready(model, headers=headers))
call("server metadata", lambda: client.get_server_metadata(headers=headers)["name"] == "backplane")
metadata = call("model metadata", lambda: client.get_model_metadata(model, headers=headers))
assert {tensor["name"] for tensor in metadata["inputs"]} == {"input_ids", "attention_mask", "token_type_ids"}
assert metadata["inputs"][0]["datatype"] == "INT64", metadata
call("model config", lambda: client.get_model_config(model, headers=headers)["name"] == model)
call("index", lambda: any(entry["name"] == model for entry in client.get_model_repository_index(headers=headers)))
json_json = call("infer json/json", lambda: infer(False, False))
binary_in = call("infer binary in", lambda: infer(True, False))
binary_out = call("infer binary out", lambda: infer(False, True))
both = call("infer binary both", lambda: infer(True, True))
for other in (binary_in, binary_out, both):
    assert json_json.shape == (1, 4, 384) and np.allclose(json_json, other, atol=1e-5)
statistics = call("statistics", lambda: client.get_inference_statistics(model, headers=headers))
assert statistics["model_stats"][0]["inference_count"] >= 4, statistics
call("log settings", lambda: isinstance(client.get_log_settings(headers=headers), dict))
call("trace settings", lambda: isinstance(client.get_trace_settings(headers=headers), dict))
call("shared memory", lambda: client.get_system_shared_memory_status(headers=headers) == [])
call("unknown model", lambda: refused(lambda: client.get_model_metadata("nobody", headers=headers), "nobody"))
call("unload", lambda: client.unload_model(model, headers=headers) is None)
call("not ready", lambda: client.is_model_ready(model, headers=headers) is False or None)
call("load again", lambda: client.load_model(model, headers=headers) is None and client.is_model_ready(model, headers=headers))
assert calls == 20
print("20 of 20")
