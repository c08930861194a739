"""A language model whose inside can be read and changed while it runs.

Everything works by hooks on the unchanged modules of transformers; ``families`` says what is at
each site. Masks say which tokens are real (1) and which are padding (0). Where a mask has padding,
positions are counted over real tokens only, so padding changes nothing but its own rows.

Gradients are off unless ``with_grad`` is given. ``torch.inference_mode`` would save nothing
measurable and its tensors could not enter a later loss, so ``torch.no_grad`` it is.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import RLock
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from sae_lib.errors import BadInput, NotApplicable, nearest
from sae_lib.models._hooks import read, replace
from sae_lib.models._loading import check_device, read_model, read_tokenizer
from sae_lib.models._sampling import check_sampling, next_token
from sae_lib.models._tokens import end_ids, pad_id, padded_rows, special_ids
from sae_lib.models.config import ModelConfig
from sae_lib.models.families import BY_NAME, Point
from sae_lib.models.inspect import ModelInfo, inspect_model
from sae_lib.models.sites import MODULE, check_site, site_width, sites_of

if TYPE_CHECKING:  # seconds to import, and most commands load no model
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Edit: TypeAlias = Callable[[Tensor], Tensor]
"""From activations (batch, seq, d) to their replacement, of the same shape."""


class _Seen(Exception):
    pass


def load_model(
    cfg: ModelConfig, *, device: str = "cpu", relative_to: Path | None = None
) -> "LanguageModel":
    """The model that ``cfg`` names, on ``device``. Directories are below ``relative_to``.

    Raises:
        MissingFile: the directory lacks its config, weights or tokenizer.
        BadInput: nobody knows the model or the device, or the weights do not fit the config.
    """
    place = check_device(device)
    info = inspect_model(cfg, relative_to=relative_to)
    return LanguageModel(read_model(cfg, info, place), read_tokenizer(cfg, info), info, place)


class LanguageModel:
    """A loaded model, its tokenizer, and what ``inspect_model`` says of it."""

    def __init__(
        self,
        model: "PreTrainedModel",
        tokenizer: "PreTrainedTokenizerBase",
        info: ModelInfo,
        device: torch.device,
    ) -> None:
        self.model: Any = model
        self.tokenizer: Any = tokenizer
        self.info = info
        self.device = device
        self.d_model = info.d_model
        self.num_layers = info.num_layers
        self.vocab_size = info.vocab_size
        self.has_lm_head = info.has_lm_head
        self.is_causal = info.is_causal
        self.special_ids = special_ids(self.model, self.tokenizer)
        self._family = BY_NAME[info.family]
        self._points = self._family.points_of(info.wiring)
        self._one_at_a_time = RLock()
        self._reservations = 0

    def sites(self) -> list[str]:
        """Every site but the modules, in the order a forward pass reaches them."""
        return sites_of(self.info)

    def width(self, site: str) -> int:
        """Numbers per token at ``site``. For a module, one token is run through the model."""
        known = site_width(self.info, site)
        if known is not None:
            return known
        return self.capture(torch.zeros(1, 1, dtype=torch.long), [site])[site].shape[-1]

    def capture(
        self,
        tokens: Int[Tensor, "batch seq"],
        sites: Sequence[str],
        *,
        mask: Bool[Tensor, "batch seq"] | Int[Tensor, "batch seq"] | None = None,
        with_grad: bool = False,
    ) -> dict[str, Float[Tensor, "batch seq _"]]:
        """What is at each of ``sites``, from one forward that ends at the last of them.

        The tensors are the model's own, after every intervention that is on. Of a module that
        runs more than once in a forward, the first run is taken.

        Raises:
            BadInput: the model has no such site, or cannot take the tokens.
        """
        seen, _ = self._forward(tokens, sites, mask, with_grad=with_grad, to_the_end=False)
        return seen

    def logits(
        self,
        tokens: Int[Tensor, "batch seq"],
        *,
        mask: Bool[Tensor, "batch seq"] | Int[Tensor, "batch seq"] | None = None,
        with_grad: bool = False,
    ) -> Float[Tensor, "batch seq vocab"]:
        """Logits of the token after each, in the number format of the model.

        Raises:
            NotApplicable: the model predicts no tokens.
            BadInput: the model cannot take the tokens.
        """
        return self.capture_and_logits(tokens, [], mask=mask, with_grad=with_grad)[1]

    def capture_and_logits(
        self,
        tokens: Int[Tensor, "batch seq"],
        sites: Sequence[str],
        mask: Bool[Tensor, "batch seq"] | Int[Tensor, "batch seq"] | None = None,
        *,
        with_grad: bool = False,
    ) -> tuple[dict[str, Float[Tensor, "batch seq _"]], Float[Tensor, "batch seq vocab"]]:
        """``capture`` and ``logits`` of one forward."""
        self._need_lm_head("logits")
        seen, output = self._forward(tokens, sites, mask, with_grad=with_grad, to_the_end=True)
        return seen, output.logits

    @contextmanager
    def intervene(self, edits: Mapping[str, Edit]) -> Iterator[None]:
        """Replace the activations at each site by what its function makes of them.

        Holds in every forward inside the context: ``capture``, ``logits``, ``generate`` (where
        every step but the first has one token per row) and calls of ``model`` itself, with
        gradients if they are on. The function is given a copy it may write to; its result is
        cast to the number format of the model. Contexts nest: the inner acts on what the outer
        left.

        Raises:
            BadInput: the model has no such site, it is `reserved`, or (in the forward) the shape
                changed.
        """
        if self._reservations:
            raise BadInput(
                "The model cannot be changed now: a training runs it in a thread of its own to "
                "stream activations. Store them instead (activations: {store: disk}), or "
                "intervene when the training has ended."
            )
        with ExitStack() as hooks:
            for site, edit in edits.items():
                for handle in self._hook(site, replace, edit):
                    hooks.callback(handle.remove)
            yield

    @contextmanager
    def reserved(self) -> Iterator[None]:
        """Inside, other threads may run the model, and nobody may change what it computes.

        Interventions from before hold in every thread; a new one is refused, since it would reach
        forwards of a thread that knows nothing of it. Forwards take turns.
        """
        self._reservations += 1
        try:
            yield
        finally:
            self._reservations -= 1

    @torch.no_grad()
    def generate(
        self,
        tokens: Int[Tensor, "batch seq"],
        *,
        mask: Bool[Tensor, "batch seq"] | Int[Tensor, "batch seq"] | None = None,
        max_new_tokens: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        seed: int = 0,
        greedy: bool = False,
    ) -> Int[Tensor, "batch seq_total"]:
        """The prompts and up to ``max_new_tokens`` more; rows that ended early end in padding.

        Prompts of different lengths are padded on the left. Row i draws from stream i of the
        seed, whatever the other rows are, so runs with one seed are paired (``_sampling``).

        Raises:
            NotApplicable: the model predicts no tokens.
            BadInput: a number is out of range, a prompt is padded on the right, prompt and
                continuation are longer than the model can take, or an intervention left logits
                that are not numbers.
        """
        self._need_lm_head("generate")
        check_sampling(max_new_tokens, temperature, top_p)
        tokens, mask = self._checked(tokens, mask)
        self._check_length(tokens.shape[1] + max_new_tokens)
        if mask is not None and not bool(mask[:, -1].all()):
            raise BadInput("Prompts must be padded on the left: the last token of each is real.")
        draws = torch.rand(
            (len(tokens), max_new_tokens),
            generator=torch.Generator().manual_seed(seed),
            dtype=torch.float64,
        ).to(self.device)
        ends = torch.tensor(
            sorted(end_ids(self.model, self.tokenizer)), dtype=torch.long, device=self.device
        )
        pad = pad_id(self.tokenizer)
        is_done = torch.zeros(len(tokens), dtype=torch.bool, device=self.device)
        new, cache = tokens, None
        for step in range(max_new_tokens):
            with self._one_at_a_time:
                output = self.model(
                    input_ids=new,
                    use_cache=True,
                    past_key_values=cache,
                    logits_to_keep=1,
                    **self._positions(mask, new.shape[1]),
                )
            cache, last = output.past_key_values, output.logits[:, -1]
            if bool(last.isnan().any()):
                raise BadInput(
                    f"The logits of new token {step} are not numbers; is an edit too strong?"
                )
            chosen = (
                last.argmax(-1)
                if greedy
                else next_token(last, draws[:, step], temperature=temperature, top_p=top_p)
            )
            new = torch.where(is_done, pad, chosen).unsqueeze(-1)
            tokens = torch.cat([tokens, new], dim=1)
            is_done |= torch.isin(new.squeeze(-1), ends)
            if bool(is_done.all()):
                break
            if mask is not None:
                mask = torch.cat([mask, torch.ones_like(new)], dim=1)
        return tokens

    def unembedding(self) -> Float[Tensor, "vocab d_model"]:
        """W_U: one row per token, read by the final norm's output. Biases and soft caps are left
        out; a projection before the head (OPT 350M) is multiplied in.

        Raises:
            NotApplicable: the model predicts no tokens.
        """
        self._need_lm_head("the unembedding")
        W_U = self.model.get_output_embeddings().weight.detach()
        project = getattr(getattr(self.model.base_model, "decoder", None), "project_out", None)
        return W_U if project is None else W_U @ project.weight

    @torch.no_grad()
    def final_norm(self, v: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch d_model"]:
        """The norm before the LM head, applied to ``v``; ``v`` itself where there is none.

        Raises:
            NotApplicable: the model predicts no tokens.
        """
        norm = self._final_norm()
        if norm is None:
            return v
        return norm(v.to(self.device, self.model.dtype))

    def final_norm_gain(self) -> Float[Tensor, " d_model"]:
        """What the final norm multiplies each dimension with; ones where there is none.

        Raises:
            NotApplicable: the model predicts no tokens.
        """
        weight = getattr(self._final_norm(), "weight", None)
        if weight is None:
            return torch.ones(self.d_model, device=self.device, dtype=self.model.dtype)
        return weight.detach() + 1 if self._family.gain_is_offset else weight.detach().clone()

    def encode_text(
        self, texts: list[str], *, max_tokens: int, padding_side: Literal["left", "right"]
    ) -> tuple[Int[Tensor, "batch seq"], Bool[Tensor, "batch seq"]]:
        """Tokens and mask, cut to ``max_tokens`` and padded to the longest, on the CPU.

        Special tokens are added as the tokenizer is set to add them.

        Raises:
            BadInput: there are no texts, or one of them has no token.
        """
        return padded_rows(self.tokenizer, texts, max_tokens, padding_side)

    def _forward(
        self,
        tokens: Tensor,
        sites: Sequence[str],
        mask: Tensor | None,
        *,
        with_grad: bool,
        to_the_end: bool,
    ) -> tuple[dict[str, Tensor], Any]:
        wanted = set(sites)
        if not wanted and not to_the_end:
            return {}, None
        tokens, mask = self._checked(tokens, mask)
        found: dict[str, Tensor] = {}
        output = None
        # a hook sees the forwards of every thread, so there is one forward at a time
        with self._one_at_a_time, ExitStack() as stack:
            for site in wanted:

                def keep(x: Tensor, site: str = site) -> None:
                    if x.shape[:2] != tokens.shape:
                        raise BadInput(
                            "Activations of shape (batch, seq, d) were expected there, for"
                            f" {tuple(tokens.shape)} tokens; there are {tuple(x.shape)}.",
                            value=site,
                        )
                    found.setdefault(site, x)
                    if not to_the_end and len(found) == len(wanted):
                        raise _Seen

                for handle in self._hook(site, read, keep):
                    stack.callback(handle.remove)
            stack.enter_context(torch.set_grad_enabled(with_grad))
            with suppress(_Seen):
                output = self.model(
                    input_ids=tokens,
                    **({"use_cache": False} if self.is_causal else {}),
                    **self._positions(mask, tokens.shape[1]),
                )
        unseen = wanted - found.keys()
        if unseen:
            raise BadInput("The module never ran.", value=sorted(unseen)[0])
        return {site: found[site] for site in sites}, output

    def _hook(
        self, site: str, attach: Callable[..., list[RemovableHandle]], act: Callable[..., Any]
    ) -> list[RemovableHandle]:
        parsed = check_site(self.info, site)
        if parsed.kind != MODULE:
            block = self.model.base_model.get_submodule(f"{self._family.blocks}.{parsed.layer}")
            return attach(block, self._points[parsed.kind], act, site)
        names = dict(self.model.named_modules())
        if parsed.path not in names:
            hint = nearest(str(parsed.path), names)
            raise BadInput(f"The model has no such module.{hint}", value=site)
        return attach(names[parsed.path], Point("", "output"), act, site)

    def _checked(self, tokens: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Both on the device, int64; the mask only where it says anything."""
        if tokens.ndim != 2 or tokens.numel() == 0:
            raise BadInput(
                f"Tokens of shape (batch, seq) were expected, not {tuple(tokens.shape)}."
            )
        self._check_length(tokens.shape[1])
        low, high = (int(end) for end in tokens.aminmax())
        # on a GPU such a token would end the whole process with an error about something else
        if low < 0 or high >= self.vocab_size:
            raise BadInput(
                f"Token ids go from 0 to {self.vocab_size - 1}.", value=low if low < 0 else high
            )
        if mask is not None and mask.shape != tokens.shape:
            raise BadInput(
                f"The mask has shape {tuple(mask.shape)}, the tokens {tuple(tokens.shape)}."
            )
        is_full = mask is None or bool(mask.all())
        return (
            tokens.to(self.device, torch.long),
            None if mask is None or is_full else mask.to(self.device, torch.long),
        )

    def _check_length(self, num_tokens: int) -> None:
        if num_tokens > self.info.max_context:
            raise BadInput(
                f"Sequences of {num_tokens} tokens are too long, continuation included;"
                f" {self.info.id} takes up to {self.info.max_context}."
            )

    def _positions(self, mask: Tensor | None, num_new: int) -> dict[str, Tensor]:
        if mask is None:
            return {}
        positions = (mask.cumsum(-1) - 1).clamp(min=0)
        if self.info.model_type == "roberta":
            pad = self.model.config.pad_token_id
            positions = torch.where(mask.bool(), positions + pad + 1, pad)
        return {"attention_mask": mask, "position_ids": positions[:, -num_new:]}

    def _final_norm(self) -> nn.Module | None:
        self._need_lm_head("the final norm")
        where, _, name = str(self._family.final_norm).rpartition(".")
        # some OPT models have None in its place
        return getattr(self.model.base_model.get_submodule(where), name)

    def _need_lm_head(self, what: str) -> None:
        if not self.has_lm_head:
            reason = (
                f"{self.info.id} was saved without its language-model head"
                if self.is_causal
                else f"{self.info.id} is an encoder ({self.info.model_type}), which predicts no"
                " next token"
            )
            raise NotApplicable(what, reason)
