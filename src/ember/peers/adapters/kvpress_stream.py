"""NVIDIA kvpress while decoding: `DecodingPress` over one of its scorers.

Arguments of a call: `method` (kvpress's class), `label`, and what else the class takes. `stock`
prunes and places tokens as kvpress's own pipeline does: positions are those of the text.
`order-fixed` is the same with the kept tokens in the order of the text: stock leaves them in that
of `topk`, and a scorer that goes by places in the cache, as StreamingLLM's does, takes what lies
first for the sinks: those of the text are gone after some prunes. `re-rotated` prunes by
`KeyRerotationPress` (which sorts), with positions inside the cache; `DecodingPress` refuses that
class itself, so a scorer hands over to it.
"""


def imports(setup):
    import kvpress  # noqa: F401
    import torch

    torch.set_num_threads(setup["threads"])


def load(setup):
    import torch
    import transformers

    dtype = getattr(torch, setup["dtype"])
    model = transformers.AutoModelForCausalLM.from_pretrained(setup["model"], dtype=dtype)
    model = model.to(setup["device"]).eval()
    if model.config.model_type == "gpt_neox":
        like_llama(model)

    @torch.inference_mode()
    def stream(streams, prefill, peak, compression_interval, n_sink, method, label, **arguments):
        tokens = torch.tensor(streams, device=model.device)
        press = decoding(method, label, n_sink, compression_interval, peak, arguments)
        cache, step = transformers.DynamicCache(), 0
        with press(model):
            for count in [prefill] + [1] * (tokens.shape[1] - prefill):
                visible = cache.get_seq_length() + count
                start = cache.get_seq_length() if label == "re-rotated" else step
                found = model(
                    tokens[:, step : step + count],
                    past_key_values=cache,
                    position_ids=torch.arange(start, start + count, device=tokens.device)[None],
                    use_cache=True,
                )
                step += count
                yield visible, losses(found.logits, tokens[:, step - count + 1 : step + 1])

    return stream, {
        "versions": {
            "kvpress": version("kvpress"),
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
        "attention": model.config._attn_implementation,
    }


def version(package):
    from importlib.metadata import version as of

    return of(package)


def losses(logits, known):
    """Nats (B, n) of the tokens known to follow, on the host."""
    logits = logits[:, : known.shape[1]].float().log_softmax(-1)
    return (-logits.gather(-1, known[..., None])[..., 0]).tolist()


def decoding(method, label, n_sink, interval, peak, arguments):
    """A `DecodingPress` that lets the cache grow to `peak` and prunes it by `interval`."""
    import kvpress

    base = getattr(kvpress, method)
    if hasattr(base, "n_sink"):
        arguments = {"n_sink": n_sink, **arguments}
    pruner = {
        "stock": None,
        "order-fixed": sorted_press(),
        "re-rotated": kvpress.KeyRerotationPress,
    }[label]

    class Scorer(base):
        def compress(self, *given):
            return (pruner(self) if pruner else super()).compress(*given)

    class Decoding(kvpress.DecodingPress):
        def forward_hook(self, module, given, kwargs, output):
            if "layer_past" in kwargs:  # GPT-NeoX's names
                kwargs = kwargs | {"past_key_values": kwargs["layer_past"]}
                kwargs["hidden_states"] = given[0]
            return super().forward_hook(module, given, kwargs, output)

    return Decoding(Scorer(**arguments), compression_interval=interval, target_size=peak - interval)


def sorted_press():
    """`KeyRerotationPress` that sorts and does not rotate."""
    import kvpress

    class Sorted(kvpress.KeyRerotationPress):
        @staticmethod
        def rerotate_keys(module, indices, keys):
            return keys.gather(2, indices[..., None].expand(-1, -1, -1, keys.shape[-1]))

    return Sorted


def like_llama(model):
    """Gives a GPT-NeoX the names, and the full rotation, that kvpress takes a model to have.

    What it computes stays: a head that rotates r of its D dimensions is one that rotates all, D - r
    of them by no angle. So dimensions of queries and keys are put in another order (dimension i is
    rotated with i + D/2, not with i + r/2), and frequencies 0 are added.
    """
    from types import SimpleNamespace

    import torch

    rotary, layers = model.gpt_neox.rotary_emb, model.gpt_neox.layers
    heads, turned = model.config.num_attention_heads, len(rotary.inv_freq)
    size = layers[0].attention.head_size
    still = size // 2 - turned
    first, last = range(turned), range(turned, 2 * turned)
    rest = range(2 * turned, size)
    order = torch.tensor([*first, *rest[:still], *last, *rest[still:]], device=model.device)
    for layer in layers:
        attention = layer.attention
        for tensor in (attention.query_key_value.weight, attention.query_key_value.bias):
            if tensor is not None:
                parts = tensor.data.view(heads, 3, size, -1)  # of a head: query, key, value
                parts[:, :2] = parts[:, :2, order]
        attention.head_dim = size
        attention.q_proj = queries(attention.query_key_value, heads, size)
    rotary.inv_freq = torch.cat([rotary.inv_freq, rotary.inv_freq.new_zeros(still)])
    model.config.num_key_value_heads = heads
    model.model = SimpleNamespace(
        layers=[SimpleNamespace(self_attn=layer.attention) for layer in layers], rotary_emb=rotary
    )


def queries(projection, heads, size):
    """What projects hidden states (B, T, hidden) to queries (B, T, heads * size)."""

    def project(hidden):
        found = projection(hidden).view(*hidden.shape[:-1], heads, 3, size)
        return found[..., 0, :].flatten(-2)

    return project
