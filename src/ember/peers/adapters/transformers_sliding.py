"""Hugging Face Transformers with a cache of its own layers, one token at a time.

Arguments of a call: `method`, the class of the cache's layers: DynamicSlidingWindowLayer (cat and
slice), StaticSlidingWindowLayer (roll and copy), or DynamicLayer, which keeps everything. A window
has no sinks. Positions are those of the text; rotation is relative, so that within a window they
say the same as positions inside the cache. The prefill must fit into the window: the model's own
mask is causal and no more.
"""


def imports(setup):
    import torch
    import transformers  # noqa: F401

    torch.set_num_threads(setup["threads"])


def load(setup):
    import torch
    import transformers
    from transformers import cache_utils

    dtype = getattr(torch, setup["dtype"])
    model = transformers.AutoModelForCausalLM.from_pretrained(setup["model"], dtype=dtype)
    model = model.to(setup["device"]).eval()

    @torch.inference_mode()
    def stream(streams, prefill, peak, method, **_):
        tokens = torch.tensor(streams, device=model.device)
        kind, given = getattr(cache_utils, method), {}
        if kind.is_sliding:
            given["sliding_window"] = peak
        if method.startswith("Static"):
            given["max_cache_len"] = peak
        cache = cache_utils.Cache(
            layers=[kind(**given) for _ in range(model.config.num_hidden_layers)]
        )
        step = 0
        for count in [prefill] + [1] * (tokens.shape[1] - prefill):
            found = model(
                tokens[:, step : step + count],
                past_key_values=cache,
                position_ids=torch.arange(step, step + count, device=tokens.device)[None],
                use_cache=True,
            )
            step += count
            visible = min(step, peak) if kind.is_sliding else step
            yield visible, losses(found.logits, tokens[:, step - count + 1 : step + 1])

    return stream, {
        "versions": {"transformers": transformers.__version__, "torch": torch.__version__},
        "attention": model.config._attn_implementation,
    }


def losses(logits, known):
    """Nats (B, n) of the tokens known to follow, on the host."""
    logits = logits[:, : known.shape[1]].float().log_softmax(-1)
    return (-logits.gather(-1, known[..., None])[..., 0]).tolist()
