"""Writes tests/golden/adapters/: LoRA adapters as PEFT saves them, and transformers' logits with them.

python tests/golden/make_adapter_golden.py      # needs torch, transformers and peft; nothing of localoss
"""

import sys
import tempfile
from pathlib import Path

import numpy as np
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import GptOssForCausalLM, Mxfp4Config

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from support import checkpoints

OUT = Path(__file__).resolve().parent / "adapters"
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
ADAPTERS = {
    "attention": dict(r=4, lora_alpha=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"]),
    "router": dict(
        r=2, lora_alpha=3, use_rslora=True, target_modules=[], target_parameters=["mlp.router.weight"]
    ),
    "experts": dict(r=2, lora_alpha=4, target_modules=[], target_parameters=EXPERTS),
    "unembedding": dict(r=3, lora_alpha=6, target_modules=["lm_head", "q_proj"]),
}
TOGETHER = [("attention", "unembedding"), ("attention", "experts")]
TOKENS = np.random.RandomState(7).randint(0, 203, 40)


def load(folder: Path) -> GptOssForCausalLM:
    return GptOssForCausalLM.from_pretrained(
        folder,
        quantization_config=Mxfp4Config(dequantize=True),
        dtype=torch.float32,
        attn_implementation="eager",
        experts_implementation="eager",
    ).eval()


def logits(model: torch.nn.Module) -> np.ndarray:
    with torch.inference_mode():
        return model(torch.tensor(TOKENS[None])).logits[0].numpy()


def main() -> None:
    found = {"tokens": TOKENS.astype(np.int32)}
    with tempfile.TemporaryDirectory() as scratch:
        source = checkpoints.write_named("short", Path(scratch) / "short")
        found["none"] = logits(load(source))
        for seed, (name, settings) in enumerate(ADAPTERS.items()):
            model = get_peft_model(load(source), LoraConfig(**settings))
            generator = torch.Generator().manual_seed(seed)
            for key, weight in model.named_parameters():
                if "lora_" in key:
                    size = 0.3 / weight.shape[-1] ** 0.5 if "lora_A" in key else 0.3
                    drawn = torch.randn(weight.shape, generator=generator) * size
                    weight.data[:] = drawn.to(torch.bfloat16).to(torch.float32)
            found[name] = logits(model)
            model.peft_config["default"].base_model_name_or_path = "short"
            model.save_pretrained(OUT / name)
            (OUT / name / "README.md").unlink(missing_ok=True)
        for names in TOGETHER:
            first, *others = names
            model = PeftModel.from_pretrained(load(source), OUT / first, adapter_name=first)
            for name in others:
                model.load_adapter(OUT / name, adapter_name=name)
            model.base_model.set_adapter(list(names))
            found["+".join(names)] = logits(model)
    np.savez_compressed(OUT / "logits.npz", **found)
    for name, array in found.items():
        print(name, array.shape, np.abs(array - found["none"]).max() if name != "tokens" else "")


if __name__ == "__main__":
    main()
