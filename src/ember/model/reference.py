"""The reference: Transformers' model of a model directory."""

from pathlib import Path

from ember.measure.overhead import part


@part("model_load")
def load_peer(model: str | Path, decoder):
    """Transformers' model of a model directory, on the decoder's device and in its dtype.

    A directory that only declares random weights is instantiated with the decoder's.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from ember.model.names import to_hf

    weight = decoder.embed_tokens.weight
    if any(Path(model).glob("*.safetensors")):
        peer = AutoModelForCausalLM.from_pretrained(str(model), dtype=weight.dtype)
        return peer.to(weight.device)
    with torch.device(weight.device):
        config = AutoConfig.from_pretrained(str(model))
        peer = AutoModelForCausalLM.from_config(config, dtype=weight.dtype)
    wanted = dict(peer.named_parameters())
    ours = to_hf(decoder.arch, dict(decoder.named_parameters()))
    if "lm_head.weight" in wanted and "embed_out.weight" in ours:
        ours["lm_head.weight"] = ours.pop("embed_out.weight")  # GPT-NeoX's, in files alone
    assert wanted.keys() == ours.keys(), "Transformers' model of this config has other parameters"
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(ours[name])
    return peer
