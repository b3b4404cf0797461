"""Any causal language model of the Hugging Face hub or a folder, for work on prompts: go on, expand, score.

Loaded through ``transformers`` from safetensors; code that comes with a model is never run. A text is a pure function of
(model, prompt, seed, index, sampler): each is drawn on its own, with random numbers of its own.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dalle_model.config import SamplerConfig
from dalle_model.errors import DataError, SourceError, UsageError
from dalle_model.runtime import Runtime

EXAMPLES = (
    ("a cat", "a cat with grey fur asleep on a red cushion, soft morning light, seen from above"),
    ("mountain lake", "a mountain lake at dawn, mist over still water, pine trees on the shore, wide view"),
)
"""Short and detailed prompts that show a model without instructions what ``expand`` wants."""
_INSTRUCTION = "Rewrite the prompt for a picture with more visual detail in one line. Keep what it names. Answer with the prompt alone."


class LanguageModel:
    """A causal language model and its tokenizer, on a device."""

    def __init__(self, model: Any, tokenizer: Any, runtime: Runtime) -> None:
        self.model = model.to(runtime.device).eval()
        self.tokenizer = tokenizer
        self.runtime = runtime

    @classmethod
    def from_pretrained(cls, place: str | Path, runtime: Runtime | None = None, **hub: Any) -> "LanguageModel":
        """A model by folder or name on the hub, in the runtime's type. hub: ``revision``, ``local_files_only``, ...

        SourceError when it is not there, is no causal language model, has no safetensors, or wants code to be run.
        """
        from transformers import AutoModelForCausalLM, AutoTokenizer

        runtime = runtime or Runtime()
        try:
            tokenizer = AutoTokenizer.from_pretrained(place, trust_remote_code=False, **hub)
            model = AutoModelForCausalLM.from_pretrained(
                place, trust_remote_code=False, use_safetensors=True, dtype=runtime.dtype, **hub
            )
        except (OSError, ValueError, KeyError) as error:
            raise SourceError(
                f"{place} cannot be loaded as a causal language model: {str(error).strip().splitlines()[0]}; "
                "give a folder with config.json, a tokenizer and safetensors, or a name on the hub"
            ) from error
        return cls(model, tokenizer, runtime)

    @property
    def max_tokens(self) -> int:
        """Positions that the model reads; a million where it names no limit."""
        return int(getattr(self.model.config, "max_position_embeddings", None) or 1_000_000)

    def continue_text(
        self,
        prompts: Sequence[str],
        n: int = 1,
        seed: int = 0,
        sampler: SamplerConfig | None = None,
        max_new_tokens: int = 40,
        stop: str = "",
    ) -> list[list[str]]:
        """Whole texts that begin with the prompts, [prompts][n], each cut before the first ``stop`` after its beginning.

        DataError when a prompt leaves no place for one token. The sampler's guidance is not used.
        """
        if n < 1 or max_new_tokens < 1:
            raise UsageError(f"n is {n} and max_new_tokens {max_new_tokens}; both are at least 1")
        return [
            [p + self._more(p, f"{seed}\0{i}\0{p}", sampler or SamplerConfig(), max_new_tokens, stop) for i in range(n)]
            for p in prompts
        ]

    def expand(
        self,
        prompts: Sequence[str],
        n: int = 1,
        seed: int = 0,
        sampler: SamplerConfig | None = None,
        max_new_tokens: int = 60,
        examples: Sequence[tuple[str, str]] = EXAMPLES,
    ) -> list[list[str]]:
        """Prompts with more detail, [prompts][n].

        A model with a chat template is told what to do and its answer is the prompt; any other goes on from ``examples``
        and from the prompt itself, which therefore stays the beginning.
        """
        drawn = sampler or SamplerConfig(temperature=0.8, top_p=0.95)
        if getattr(self.tokenizer, "chat_template", None):
            asked = [self._asked(p) for p in prompts]
            told = self.continue_text(asked, n, seed, drawn, max_new_tokens, stop="\n")
            return [
                [one_line(t[len(a) :]) or p for t in texts] for p, a, texts in zip(prompts, asked, told, strict=True)
            ]
        shown = "".join(f"Short: {short}\nDetailed: {detailed}\n\n" for short, detailed in examples)
        begun = [f"{shown}Short: {p}\nDetailed: {p}" for p in prompts]
        told = self.continue_text(begun, n, seed, drawn, max_new_tokens, stop="\n")
        return [[one_line(p + t[len(b) :]) for t in texts] for p, b, texts in zip(prompts, begun, told, strict=True)]

    @torch.inference_mode()
    def score_text(self, texts: Sequence[str]) -> list[float]:
        """ln p of each text, nats, without its first token; 0 for a text of one token or none. DataError when too long."""
        scores = []
        for text in texts:
            ids = self._ids(text, 0)
            if ids.shape[1] < 2:
                scores.append(0.0)
                continue
            log_p = self.model(ids).logits[0, :-1].float().log_softmax(-1)
            scores.append(float(log_p.gather(1, ids[0, 1:, None]).sum()))
        return scores

    def _asked(self, prompt: str) -> str:
        messages = [{"role": "user", "content": f"{_INSTRUCTION}\n\nPrompt: {prompt}"}]
        asked: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return asked

    def _ids(self, text: str, room: int) -> torch.Tensor:
        """Token ids int64 [1, n] with ``room`` places left. DataError when they do not fit."""
        ids: torch.Tensor = self.tokenizer(text, return_tensors="pt").input_ids.to(self.runtime.device).long()
        if ids.shape[1] + room > self.max_tokens:
            raise DataError(
                f"a text has {ids.shape[1]} tokens, the model reads {self.max_tokens} and {room} are to follow; shorten it"
            )
        return ids

    @torch.inference_mode()
    def _more(self, prompt: str, key: str, sampler: SamplerConfig, max_new_tokens: int, stop: str) -> str:
        """What follows a prompt, without it."""
        from transformers import GenerationConfig

        ids = self._ids(prompt, 1)
        end = self.tokenizer.eos_token_id
        if not ids.shape[1]:
            if end is None:
                raise DataError("the prompt has no token, and this model no token to begin with; write a word")
            ids = torch.full((1, 1), end, device=self.runtime.device)
        drawn = sampler.temperature > 0
        options: dict[str, Any] = {"max_new_tokens": min(max_new_tokens, self.max_tokens - ids.shape[1])}
        if drawn:
            options |= {"temperature": sampler.temperature, "top_k": sampler.top_k, "top_p": sampler.top_p}
        pad = self.tokenizer.pad_token_id
        config = GenerationConfig(  # type: ignore[no-untyped-call]
            do_sample=drawn, eos_token_id=end, pad_token_id=end if pad is None else pad, use_cache=True, **options
        )
        devices = [self.runtime.device] if self.runtime.device.type == "cuda" else []
        with torch.random.fork_rng(devices=devices):
            torch.manual_seed(int.from_bytes(hashlib.sha256(key.encode()).digest()[:7], "little"))
            made = self.model.generate(ids, attention_mask=torch.ones_like(ids), generation_config=config)
        told: str = self.tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
        return told.split(stop)[0] if stop else told


def one_line(text: str) -> str:
    """White space folded, quotation marks around the whole removed: as a prompt is written."""
    return " ".join(text.split()).strip("\"' ")
