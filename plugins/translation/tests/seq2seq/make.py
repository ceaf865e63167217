"""Makes a small model in the layout of Marian and OPUS, and what others make of it: `make.py FOLDER TEXTS`.

The weights are random, and the same ones every time. They are written twice: as the ONNX graphs that Hugging Face's Optimum
exports, and as a model of CTranslate2, whose own greedy and beam search is the reference. The pieces are trained by
SentencePiece on TEXTS (a table of language, kind, text), and what SentencePiece makes of many strings is the other reference.
"""

import json
import pathlib
import random
import sys

import ctranslate2
import numpy as np
import onnx
import sentencepiece
from ctranslate2.specs import TransformerSpec, common_spec
from onnx import TensorProto, helper, numpy_helper

FOLDER = pathlib.Path(sys.argv[1])
TEXTS = [line.rstrip("\n").split("\t") for line in open(sys.argv[2], encoding="utf-8")]
SENTENCES = [text for _, kind, text in TEXTS if kind == "s"]

LAYERS, WIDTH, INNER, HEADS, POSITIONS = 2, 32, 64, 4, 64
HEAD = WIDTH // HEADS


# Pieces.


def train(name: str, sentences: list[str], size: int, **options) -> sentencepiece.SentencePieceProcessor:
    options = {"model_type": "unigram", "bos_id": -1, "num_threads": 2, "minloglevel": 2, "hard_vocab_limit": False} | options
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_prefix=str(FOLDER / name), vocab_size=size, **options
    )
    (FOLDER / f"{name}.vocab").unlink()
    (FOLDER / f"{name}.model").rename(FOLDER / f"{name}.spm")
    return sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / f"{name}.spm"))


def of(*languages: str) -> list[str]:
    return [text for language, kind, text in TEXTS if kind == "s" and language in languages]


def strings(seed: int, symbols: list[str]) -> list[str]:
    """Every text, and odd ones: white space, control characters, what has several forms, what looks like a piece."""
    odd = [chr(code) for code in [*range(0x21), 0x7F, 0x85, 0xA0, 0xAD, 0x1680, 0x180E, *range(0x2000, 0x2010), 0x2028, 0x2029]]
    odd += list("\u202f\u205f\u2060\u3000\ufeff\ufffd\u0300\u0301\u0308\u20dd\u2581\u1100\u1161\u11a8\uac00\u304b\u3099\uff76\uff9e")
    odd += list("ﬁﬀﷺﷻ㍿㈱①Ⅳ½ℌｱＡ！ａ１ªºµſẛ̣İıßẞΐ") + ["\U0001f469\u200d\U0001f52c", "🏳️\u200d🌈", "🇩🇪", "👍🏽", "𝔘", "\U0010ffff", "\ue000"]
    odd += ["</s>", "<unk>", "<s>", "<pad>", "<0x41>", "<0xE2>", ">>deu<<", "▁the", "  ", " \t\r\n ", "...", "--------", "''"]
    odd += symbols
    rng = random.Random(seed)
    words = [word for sentence in SENTENCES for word in sentence.split()]
    made = ["", " ", "   ", "\u3000", "a", " a", "a ", " a  b ", *odd]
    for _ in range(900):
        parts = [rng.choice(odd) if rng.random() < 0.4 else rng.choice(words) for _ in range(rng.randint(1, 9))]
        made.append("".join(part + rng.choice(["", "", " ", "  "]) for part in parts))
    return made + [text for _, _, text in TEXTS]


def reference(name: str, model: sentencepiece.SentencePieceProcessor, seed: int, symbols: list[str]) -> dict:
    rng = random.Random(seed)
    encoded = [[text, model.encode(text, out_type=int), model.encode(text, out_type=str)] for text in strings(seed, symbols)]
    decoded = [[pieces, model.decode_pieces(pieces)] for _, _, pieces in encoded]
    known = [model.id_to_piece(number) for number in range(model.get_piece_size())] + ["nothing of this", "▁▁"]
    for _ in range(500):
        pieces = rng.choices(known, k=rng.randint(1, 8))
        decoded.append([pieces, model.decode_pieces(pieces)])
    return {"file": f"{name}.spm", "encoded": encoded, "decoded": decoded}


# Graphs.


class Graph:
    """An ONNX graph in the making."""

    def __init__(self):
        self.nodes, self.weights, self.inputs, self.outputs = [], {}, [], []

    def add(self, operator: str, *inputs: str, **attributes) -> str:
        name = f"n{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, list(inputs), [name], **attributes))
        return name

    def constant(self, value) -> str:
        value = np.asarray(value)
        name = f"w{len(self.weights)}"
        self.weights[name] = numpy_helper.from_array(value, name)
        return name

    def ints(self, *values: int) -> str:
        return self.constant(np.array(values, dtype=np.int64))

    def input(self, name: str, kind: int, shape: list) -> str:
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def output(self, name: str, value: str, shape: list):
        self.nodes.append(helper.make_node("Identity", [value], [name]))
        self.outputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))

    def linear(self, x: str, layer: "Linear") -> str:
        return self.add("Add", self.add("MatMul", x, self.constant(layer.weight.T.copy())), self.constant(layer.bias))

    def norm(self, x: str, norm: "Norm") -> str:
        return self.add("LayerNormalization", x, self.constant(norm.gamma), self.constant(norm.beta), axis=-1)

    def heads(self, x: str) -> str:
        return self.add("Transpose", self.add("Reshape", x, self.ints(0, 0, HEADS, HEAD)), perm=[0, 2, 1, 3])

    def attention(self, query: str, key: str, value: str, out: "Linear", mask: str | None = None) -> str:
        scores = self.add("MatMul", query, self.add("Transpose", key, perm=[0, 1, 3, 2]))
        scores = self.add("Mul", scores, self.constant(np.float32(HEAD**-0.5)))
        if mask:
            scores = self.add("Add", scores, mask)
        mixed = self.add("MatMul", self.add("Softmax", scores, axis=-1), value)
        mixed = self.add("Reshape", self.add("Transpose", mixed, perm=[0, 2, 1, 3]), self.ints(0, 0, WIDTH))
        return self.linear(mixed, out)

    def feed_forward(self, x: str, layer: "Layer") -> str:
        inner = self.linear(x, layer.inner)
        inner = self.add("Mul", inner, self.add("Sigmoid", inner))
        return self.norm(self.add("Add", x, self.linear(inner, layer.outer)), layer.final_norm)

    def hidden_mask(self, mask: str) -> str:
        """0 where there is a token, a very small number where there is padding."""
        mask = self.add("Cast", mask, to=TensorProto.FLOAT)
        mask = self.add("Mul", self.add("Sub", self.constant(np.float32(1)), mask), self.constant(np.float32(-1e9)))
        return self.add("Unsqueeze", mask, self.ints(1, 2))

    def embed(self, ids: str, weights: "Weights", first: str, length: str) -> str:
        x = self.add("Gather", self.constant(weights.embeddings), ids)
        x = self.add("Mul", x, self.constant(np.float32(WIDTH**0.5)))
        positions = self.add("Slice", self.constant(weights.positions), first, self.add("Add", first, length))
        return self.add("Add", x, positions)

    def length(self, x: str, axis: int) -> str:
        return self.add("Gather", self.add("Shape", x), self.ints(axis))

    def save(self, name: str):
        graph = helper.make_graph(self.nodes, name, self.inputs, self.outputs, list(self.weights.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, FOLDER / f"{name}.onnx")


class Linear:
    def __init__(self, rng, width_in: int, width_out: int, scale: float):
        self.weight = (rng.standard_normal((width_out, width_in)) * scale / width_in**0.5).astype(np.float32)
        self.bias = (rng.standard_normal(width_out) * 0.1).astype(np.float32)


class Norm:
    def __init__(self, rng):
        self.gamma = (1 + rng.standard_normal(WIDTH) * 0.1).astype(np.float32)
        self.beta = (rng.standard_normal(WIDTH) * 0.1).astype(np.float32)


class Attention:
    def __init__(self, rng):
        self.query, self.key, self.value = (Linear(rng, WIDTH, WIDTH, 2.0) for _ in range(3))
        self.out, self.norm = Linear(rng, WIDTH, WIDTH, 2.0), Norm(rng)


class Layer:
    def __init__(self, rng):
        self.own, self.other = Attention(rng), Attention(rng)
        self.inner, self.outer = Linear(rng, WIDTH, INNER, 1.0), Linear(rng, INNER, WIDTH, 1.0)
        self.final_norm = Norm(rng)


class Weights:
    """Of a model with `size` tokens, of which the last is padding."""

    def __init__(self, rng, size: int):
        self.embeddings = (rng.standard_normal((size, WIDTH)) * 4 * WIDTH**-0.5).astype(np.float32)
        self.embeddings[-1] = 0
        # Random as well, and large: a translation that only depended on its last token would soon repeat itself.
        self.positions = (rng.standard_normal((POSITIONS, WIDTH)) * 3).astype(np.float32)
        self.encoder, self.decoder = ([Layer(rng) for _ in range(LAYERS)] for _ in range(2))
        self.projection = Linear(rng, WIDTH, size, 2.0)
        # Half of the translations end by themselves, and padding would come first if it were allowed to come at all.
        self.projection.bias[0] = 5
        self.projection.bias[-1] = 9


def encoder(weights: Weights):
    graph = Graph()
    ids = graph.input("input_ids", TensorProto.INT64, ["batch_size", "encoder_sequence_length"])
    mask = graph.input("attention_mask", TensorProto.INT64, ["batch_size", "encoder_sequence_length"])
    mask = graph.hidden_mask(mask)
    x = graph.embed(ids, weights, graph.ints(0), graph.length(ids, 1))
    for layer in weights.encoder:
        own = layer.own
        query, key, value = (graph.heads(graph.linear(x, part)) for part in (own.query, own.key, own.value))
        x = graph.norm(graph.add("Add", x, graph.attention(query, key, value, own.out, mask)), own.norm)
        x = graph.feed_forward(x, layer)
    graph.output("last_hidden_state", x, ["batch_size", "encoder_sequence_length", WIDTH])
    graph.save("encoder_model")


def decoder(weights: Weights, size: int, past: bool):
    graph = Graph()
    mask = graph.input("encoder_attention_mask", TensorProto.INT64, ["batch_size", "encoder_sequence_length"])
    ids = graph.input("input_ids", TensorProto.INT64, ["batch_size", "decoder_sequence_length"])
    if not past:
        hidden = graph.input("encoder_hidden_states", TensorProto.FLOAT, ["batch_size", "encoder_sequence_length", WIDTH])

    def cache(layer: int, side: str, part: str) -> str:
        shape = ["batch_size", HEADS, f"past_{side}_sequence_length", HEAD]
        return graph.input(f"past_key_values.{layer}.{side}.{part}", TensorProto.FLOAT, shape)

    parts = [(side, part) for side in ("decoder", "encoder") for part in ("key", "value")]
    caches = [{part: cache(at, *part) for part in parts} for at in range(LAYERS)] if past else []
    mask = graph.hidden_mask(mask)
    first = graph.length(caches[0]["decoder", "key"], 2) if past else graph.ints(0)
    x = graph.embed(ids, weights, first, graph.length(ids, 1))
    for at, layer in enumerate(weights.decoder):
        own, other, present = layer.own, layer.other, {}
        for part, linear in (("key", own.key), ("value", own.value)):
            new = graph.heads(graph.linear(x, linear))
            present["decoder", part] = graph.add("Concat", caches[at]["decoder", part], new, axis=2) if past else new
        for part, linear in (("key", other.key), ("value", other.value)):
            present["encoder", part] = caches[at]["encoder", part] if past else graph.heads(graph.linear(hidden, linear))
        query = graph.heads(graph.linear(x, own.query))
        mixed = graph.attention(query, present["decoder", "key"], present["decoder", "value"], own.out)
        x = graph.norm(graph.add("Add", x, mixed), own.norm)
        query = graph.heads(graph.linear(x, other.query))
        mixed = graph.attention(query, present["encoder", "key"], present["encoder", "value"], other.out, mask)
        x = graph.norm(graph.add("Add", x, mixed), other.norm)
        x = graph.feed_forward(x, layer)
        for (side, part), value in present.items():
            if side == "decoder" or not past:
                graph.output(f"present.{at}.{side}.{part}", value, ["batch_size", HEADS, f"{side}_length", HEAD])
    graph.output("logits", graph.linear(x, weights.projection), ["batch_size", "decoder_sequence_length", size])
    graph.save("decoder_with_past_model" if past else "decoder_model")


# The same for CTranslate2.


def put_linear(spec, *layers: Linear):
    spec.weight = np.concatenate([layer.weight for layer in layers])
    spec.bias = np.concatenate([layer.bias for layer in layers])


def put_norm(spec, norm: Norm):
    spec.gamma, spec.beta = norm.gamma, norm.beta


def toolkit(weights: Weights, tokens: list[str]) -> ctranslate2.Translator:
    spec = TransformerSpec.from_config((LAYERS, LAYERS), HEADS, pre_norm=False, activation=common_spec.Activation.SWISH)
    spec.decoder.start_from_zero_embedding = True
    for side, layers in ((spec.encoder, weights.encoder), (spec.decoder, weights.decoder)):
        embeddings = side.embeddings[0] if isinstance(side.embeddings, list) else side.embeddings
        embeddings.weight = weights.embeddings[:-1]
        side.position_encodings.encodings = weights.positions
        for layer_spec, layer in zip(side.layer, layers):
            own, other = layer.own, layer.other
            put_linear(layer_spec.self_attention.linear[0], own.query, own.key, own.value)
            put_linear(layer_spec.self_attention.linear[1], own.out)
            put_norm(layer_spec.self_attention.layer_norm, own.norm)
            if side is spec.decoder:
                put_linear(layer_spec.attention.linear[0], other.query)
                put_linear(layer_spec.attention.linear[1], other.key, other.value)
                put_linear(layer_spec.attention.linear[2], other.out)
                put_norm(layer_spec.attention.layer_norm, other.norm)
            put_linear(layer_spec.ffn.linear_0, layer.inner)
            put_linear(layer_spec.ffn.linear_1, layer.outer)
            put_norm(layer_spec.ffn.layer_norm, layer.final_norm)
    spec.decoder.projection.weight = weights.projection.weight[:-1]
    spec.decoder.projection.bias = weights.projection.bias[:-1]
    spec.register_source_vocabulary(tokens[:-1])
    spec.register_target_vocabulary(tokens[:-1])
    spec.config.eos_token, spec.config.unk_token, spec.config.decoder_start_token = "</s>", "<unk>", "</s>"
    spec.validate()
    (FOLDER / "toolkit").mkdir()
    spec.save(str(FOLDER / "toolkit"))
    return ctranslate2.Translator(str(FOLDER / "toolkit"), device="cpu", compute_type="float32", inter_threads=1, intra_threads=2)


def text_of(model: sentencepiece.SentencePieceProcessor, pieces: list[str]) -> str:
    """As Hugging Face's tokenizer of Marian does: what only the vocabulary knows comes with its visible spaces."""
    return model.decode_pieces(pieces).replace("▁", " ").strip()


def main():
    source, target = train("source", of("en", "de", "fr"), 400), train("target", of("es", "it", "pt"), 300)
    pieces = [model.id_to_piece(number) for model in (source, target) for number in range(model.get_piece_size())]
    tokens = list(dict.fromkeys(["</s>", "<unk>", *pieces, "<pad>"]))
    tokens.remove("<pad>")
    tokens.append("<pad>")
    ids = {token: number for number, token in enumerate(tokens)}
    (FOLDER / "vocab.json").write_text(json.dumps(ids))

    weights = Weights(np.random.default_rng(7), len(tokens))
    encoder(weights)
    decoder(weights, len(tokens), past=False)
    decoder(weights, len(tokens), past=True)
    pad, longest = ids["<pad>"], 24
    config = {"max_position_embeddings": POSITIONS, "eos_token_id": 0, "pad_token_id": pad, "num_beams": 3}
    generation = {
        "bad_words_ids": [[pad]], "decoder_start_token_id": pad, "early_stopping": True, "eos_token_id": 0,
        "length_penalty": 1.0, "max_length": longest + 1, "num_beams": 4, "pad_token_id": pad, "renormalize_logits": True,
    }
    (FOLDER / "config.json").write_text(json.dumps(config))
    (FOLDER / "generation_config.json").write_text(json.dumps(generation))

    translator = toolkit(weights, tokens)
    # Of all lengths, so that some are padded where they are translated together.
    sentences = [" ".join(text.split()[: 2 + at % 13]) for at, text in enumerate(of("en", "de"))]
    asked = [[*source.encode(sentence, out_type=str), "</s>"] for sentence in sentences]
    known = [[token if token in ids else "<unk>" for token in sentence][: POSITIONS - 1] for sentence in asked]

    def search(beams: int, penalty: float, banned: list[list[str]] | None = None) -> dict:
        results = translator.translate_batch(
            known, beam_size=beams, num_hypotheses=beams, length_penalty=penalty, min_decoding_length=0,
            max_decoding_length=longest, return_scores=True, return_end_token=True, suppress_sequences=banned, max_batch_size=0,
        )
        found = [
            [[[ids[token] for token in tokens], score] for tokens, score in zip(result.hypotheses, result.scores)]
            for result in results
        ]
        banned = [[ids[token] for token in sequence] for sequence in banned or []]
        return {"beams": beams, "length_penalty": penalty, "banned": banned, "found": found}

    greedy = search(1, 1.0)
    # The commonest token of the greedy translations, and the commonest pair of tokens.
    said = [[tokens[number] for number in found[0][0] if number] for found in greedy["found"]]
    firsts = [sentence[0] for sentence in said if sentence]
    pairs = [tuple(sentence[at : at + 2]) for sentence in said for at in range(len(sentence) - 1)]
    common, pair = max(sorted(set(firsts)), key=firsts.count), max(sorted(set(pairs)), key=pairs.count)
    searches = [greedy, *(search(beams, penalty) for beams, penalty in ((2, 1.0), (4, 1.0), (4, 0.2), (5, 2.0)))]
    searches.append(search(4, 1.0, [[common], list(pair)]))

    symbols = ["<keep>", "@@", "naïve word"]
    others = {
        "whole": train("whole", SENTENCES, 3000, character_coverage=0.999),
        "bytes": train(
            "bytes", SENTENCES, 2500, byte_fallback=True, character_coverage=0.98, user_defined_symbols=symbols,
            normalization_rule_name="identity", remove_extra_whitespaces=False, control_symbols=["<ctrl>"],
        ),
        "suffix": train(
            "suffix", of("en", "ru", "ja"), 700, treat_whitespace_as_suffix=True, normalization_rule_name="nfkc_cf",
            user_defined_symbols=symbols,
        ),
    }
    models = {"source": source, "target": target, **others}
    best = [[tokens[number] for number in found[0][0] if number not in (0, 1)] for found in searches[2]["found"]]
    (FOLDER / "reference.json").write_text(json.dumps({
        "sentences": [{"text": text, "ids": [ids[token] for token in sentence]} for text, sentence in zip(sentences, known)],
        "searches": searches,
        "texts": [[sentence, text_of(target, pieces)] for sentence, pieces in zip(sentences, best)],
        "pieces": [reference(name, model, seed, symbols) for seed, (name, model) in enumerate(models.items())],
    }))


main()
