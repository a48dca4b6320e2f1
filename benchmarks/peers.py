"""The same weights in the libraries that decoding is compared with. Each is opened as `f(prompts, new) -> None`.

A model directory of ours holds the weights. llama.cpp reads a GGUF file and CTranslate2 a folder of its own, which are
written here once, from the tensors.
"""

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from transformer.hub import checkpoint
from transformer.inference import SamplingOptions, TorchBackend, select_backend
from transformer.inference.decoder import Decoder
from transformer.model import ModelConfig, Transformer
from transformer.model.positions import scaled_frequencies

Run = Callable[[Sequence[Sequence[int]], int], None]  # prompts of one length, and how many new tokens each gets

_PRECISIONS = {
    "ours": ("fp32", "bf16", "int8"),
    "ours by PyTorch": ("fp32", "bf16", "int8"),  # what serves where there is no C compiler
    "llama.cpp": ("fp32", "bf16", "int8"),
    "CTranslate2": ("fp32", "int8"),
    "transformers": ("fp32", "bf16"),
}
CONTENDERS = [(name, precision) for name, precisions in _PRECISIONS.items() for precision in precisions]


def open_contender(name: str, precision: str, directory: Path) -> Run:
    """Raises: ImportError if it is not installed, NotImplementedError if it is not prepared for this architecture."""
    opening = {
        "ours": partial(_ours, select_backend),
        "ours by PyTorch": partial(_ours, TorchBackend),
        "llama.cpp": _llama_cpp,
        "CTranslate2": _ctranslate2,
        "transformers": _transformers,
    }
    return opening[name](directory, precision)


def _ours(arrange: Callable, directory: Path, precision: str) -> Run:
    model = arrange(checkpoint.load_model(directory, keep_half=True), precision)

    def run(prompts: Sequence[Sequence[int]], new: int) -> None:
        decoder = Decoder(model, prompts, SamplingOptions(max_tokens=new, temperature=0), eos_token_ids=[])
        for _ in range(new):
            decoder.next()

    return run


def _transformers(directory: Path, precision: str) -> Run:
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    model.generation_config.eos_token_id = None

    def run(prompts: Sequence[Sequence[int]], new: int) -> None:
        tokens = torch.tensor([list(prompt) for prompt in prompts])
        greedy = {"do_sample": False, "repetition_penalty": 1.0, "pad_token_id": 0}
        model.generate(tokens, attention_mask=torch.ones_like(tokens), max_new_tokens=new, **greedy)

    return run


def _llama_cpp(directory: Path, precision: str) -> Run:
    import llama_cpp as llama

    path = directory / f"{precision}.gguf"
    if not path.exists():
        write_gguf(checkpoint.load_model(directory, keep_half=True), precision, path)
    llama.llama_log_set(_SILENT, None)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(str(path).encode(), llama.llama_model_default_params())
    options = llama.llama_context_default_params()
    options.n_ctx, options.n_batch = 1024, 512
    options.n_threads = options.n_threads_batch = torch.get_num_threads()
    context = llama.llama_init_from_model(model, options)
    size = llama.llama_vocab_n_tokens(llama.llama_model_get_vocab(model))

    def run(prompts: Sequence[Sequence[int]], new: int) -> None:
        if len(prompts) > 1:
            raise NotImplementedError("texts side by side")
        llama.llama_memory_clear(llama.llama_get_memory(context), True)
        tokens = list(prompts[0])
        for _ in range(new):
            ids = (llama.llama_token * len(tokens))(*tokens)  # named: the batch keeps its address alone
            if llama.llama_decode(context, llama.llama_batch_get_one(ids, len(tokens))):
                raise RuntimeError("llama_decode failed")
            logits = np.ctypeslib.as_array(llama.llama_get_logits_ith(context, -1), (size,))
            tokens = [int(logits.argmax())]

    return run


def _silence() -> object:
    try:
        import llama_cpp
    except ImportError:
        return None
    return llama_cpp.llama_log_callback(lambda level, text, data: None)


_SILENT = _silence()  # kept: the library calls it as long as it lives


def write_gguf(model: Transformer, precision: str, path: Path) -> None:
    """Our tensors in llama.cpp's file format, as GPT-2, Llama or Qwen3; it has no vocabulary: tokens go in and out."""
    import gguf

    config, state = model.config, model.state_dict()
    gpt2, llama = config.positions == "learned", config.positions == "rotary" and not config.qk_norm
    if (gpt2 and config.kv_heads != config.n_heads) or (not gpt2 and config.activation != "swiglu"):
        raise NotImplementedError("neither GPT-2 nor Llama nor Qwen3")
    kinds = gguf.GGMLQuantizationType
    kind = {"fp32": kinds.F32, "bf16": kinds.BF16, "int8": kinds.Q8_0}[precision]
    writer = gguf.GGUFWriter(path, "gpt2" if gpt2 else "llama" if llama else "qwen3")
    writer.add_context_length(config.context_length)
    writer.add_embedding_length(config.d_model)
    writer.add_block_count(config.n_layers)
    writer.add_feed_forward_length(config.feed_forward_dim)
    writer.add_head_count(config.n_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("none")
    if gpt2:
        writer.add_layer_norm_eps(config.norm_eps)
    else:
        writer.add_head_count_kv(config.kv_heads)
        writer.add_key_length(config.key_dim)
        writer.add_value_length(config.key_dim)
        writer.add_rope_freq_base(config.rope_theta)
        writer.add_layer_norm_rms_eps(config.norm_eps)
    if llama:
        writer.add_rope_dimension_count(config.key_dim)
        if config.rope_scaling is not None:
            plain = 1.0 / config.rope_theta ** (torch.arange(0, config.key_dim, 2) / config.key_dim)
            writer.add_tensor("rope_freqs.weight", (plain / scaled_frequencies(plain, config)[0]).numpy())

    def add(name: str, tensor: torch.Tensor) -> None:
        array = tensor.float().numpy()
        if array.ndim == 2 and name != "position_embd.weight" and kind != kinds.F32:
            writer.add_tensor(name, gguf.quants.quantize(array, kind), raw_dtype=kind)
        else:
            writer.add_tensor(name, np.ascontiguousarray(array))

    add("token_embd.weight", state["token_embedding.weight"])
    if not config.tie_embeddings:
        add("output.weight", state["head.weight"])
    if gpt2:
        add("position_embd.weight", state["position_embedding.weight"])
    names = {"attention_norm": "attn_norm", "feed_forward_norm": "ffn_norm", "attention.output": "attn_output"}
    names |= {"feed_forward.up": "ffn_up", "feed_forward.down": "ffn_down", "feed_forward.gate": "ffn_gate"}
    names |= {"attention.query_norm": "attn_q_norm", "attention.key_norm": "attn_k_norm"}
    projections = ("query", "key", "value")
    if not gpt2:
        names |= {f"attention.{name}": f"attn_{name[0]}" for name in projections}
    for part in ("weight", "bias"):
        for i in range(config.n_layers):
            if gpt2:
                parts = [state[f"layers.{i}.attention.{name}.{part}"] for name in projections]
                add(f"blk.{i}.attn_qkv.{part}", torch.cat(parts))
            for ours, theirs in names.items():
                if (name := f"layers.{i}.{ours}.{part}") in state:
                    rotated = llama and ours in ("attention.query", "attention.key")
                    add(f"blk.{i}.{theirs}.{part}", pairs_together(state[name], config) if rotated else state[name])
        if f"final_norm.{part}" in state:
            add(f"output_norm.{part}", state[f"final_norm.{part}"])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def pairs_together(projection: torch.Tensor, config: ModelConfig) -> torch.Tensor:
    """A projection (heads · E, ...) as llama.cpp's Llama rotates: the two values of a pair stand side by side."""
    halves = projection.view(-1, 2, config.key_dim // 2, *projection.shape[1:])
    return halves.transpose(1, 2).reshape(projection.shape)


def _ctranslate2(directory: Path, precision: str) -> Run:
    import ctranslate2

    folder = directory / f"ctranslate2-{precision}"
    if not folder.exists():
        _write_ctranslate2(checkpoint.load_model(directory), precision, folder)
    kind = {"fp32": "float32", "int8": "int8"}[precision]
    threads = torch.get_num_threads()
    model = ctranslate2.Generator(str(folder), device="cpu", compute_type=kind, inter_threads=1, intra_threads=threads)

    def run(prompts: Sequence[Sequence[int]], new: int) -> None:
        words = [[str(token) for token in prompt] for prompt in prompts]
        lengths = {"max_length": new, "min_length": new, "include_prompt_in_result": False}
        model.generate_batch(words, sampling_topk=1, max_batch_size=len(prompts), **lengths)

    return run


def _write_ctranslate2(model: Transformer, precision: str, folder: Path) -> None:
    from ctranslate2 import specs

    config, state = model.config, {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    if config.positions != "learned":
        raise NotImplementedError("not GPT-2")
    activation = specs.Activation.GELUTanh
    spec = specs.TransformerDecoderModelSpec.from_config(
        config.n_layers, config.n_heads, pre_norm=True, activation=activation
    )
    decoder = spec.decoder
    decoder.scale_embeddings = False
    decoder.embeddings.weight = decoder.projection.weight = state["token_embedding.weight"]
    decoder.position_encodings.encodings = state["position_embedding.weight"]

    def norm(target: object, name: str) -> None:
        target.gamma, target.beta = state[f"{name}.weight"], state[f"{name}.bias"]

    def linear(target: object, *names: str) -> None:
        for part in ("weight", "bias"):
            setattr(target, part, np.concatenate([state[f"{name}.{part}"] for name in names]))

    norm(decoder.layer_norm, "final_norm")
    for i, layer in enumerate(decoder.layer):
        ours = f"layers.{i}"
        norm(layer.self_attention.layer_norm, f"{ours}.attention_norm")
        linear(layer.self_attention.linear[0], *(f"{ours}.attention.{name}" for name in ("query", "key", "value")))
        linear(layer.self_attention.linear[1], f"{ours}.attention.output")
        norm(layer.ffn.layer_norm, f"{ours}.feed_forward_norm")
        linear(layer.ffn.linear_0, f"{ours}.feed_forward.up")
        linear(layer.ffn.linear_1, f"{ours}.feed_forward.down")
    spec.config.bos_token = spec.config.eos_token = spec.config.unk_token = "0"
    spec.register_vocabulary([str(token) for token in range(config.vocab_size)])
    spec.validate()
    spec.optimize(quantization={"fp32": "float32", "int8": "int8"}[precision])
    folder.mkdir()
    spec.save(str(folder))
