"""The frozen text tower of an open_clip model; sequences are cut to the longest one in use.

A tower with a causal mask that pools at the end-of-text token never reads the tokens after it, so
leaving out the padding is exact; prompts of 10 to 25 tokens then cost a quarter of the full 77.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from methods.errors import UserError

Tokenizer = Callable[[list[str]], Tensor]


class TextTower(nn.Module):
    """Encodes strings and learnt token embeddings.

    Args:
        model: an open_clip model; its text modules are shared, not copied.
        tokenizer: from `open_clip.get_tokenizer`.
        description: the model's name, for messages.
    """

    transformer: Any
    token_embedding: Any
    positional_embedding: Tensor
    ln_final: Any
    text_projection: Any
    attn_mask: Tensor | None
    inner: Any

    def __init__(self, model: Any, tokenizer: Tokenizer, description: str) -> None:
        import open_clip  # here, because planning a grid does without it
        from open_clip.transformer import TextTransformer

        super().__init__()
        self.tokenizer = tokenizer
        self.description = description
        inner = getattr(model, "text", model)
        self.context_length: int = inner.context_length
        # A class token at the end (CoCa), a padding mask and Hugging Face encoders need token ids:
        # they use the model's own forward method.
        own_code = isinstance(inner, open_clip.CLIP | TextTransformer)
        self.learnable = (
            own_code and getattr(inner, "cls_emb", None) is None and not getattr(inner, "use_pad_mask", False)
        )
        self.cuttable = False
        if self.learnable:
            self.transformer = inner.transformer
            self.token_embedding = inner.token_embedding
            self.positional_embedding = inner.positional_embedding
            self.ln_final = inner.ln_final
            self.text_projection = inner.text_projection
            self.register_buffer("attn_mask", inner.attn_mask, persistent=False)
            prefix = "text_" if inner is model else ""  # CLIP keeps its text tower's fields itself
            self.pool: str = getattr(inner, f"{prefix}pool_type")
            self.eos_id: int = getattr(inner, f"{prefix}eos_id")
            self.cuttable = self.attn_mask is not None and self.pool in ("argmax", "eos")
        else:
            self.inner = inner
        self.requires_grad_(False)
        self.eval()

    def train(self, mode: bool = True) -> TextTower:
        """Stay in evaluation mode: the tower is frozen."""
        return super().train(False)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return next(self.parameters()).device

    def tokenise(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Token ids (K, context_length) int64 and positions (K,) of the end-of-text tokens."""
        ids = self.tokenizer(list(texts)).to(self.device)
        return ids, self._end(ids)

    def encode_text(self, texts: Sequence[str]) -> Tensor:
        """Return (K, d) features, not normalised, of K strings."""
        if not self.learnable:
            output = self.inner(self.tokenizer(list(texts)).to(self.device))
            return output[0] if isinstance(output, tuple) else output
        ids, end = self.tokenise(texts)
        if self.cuttable:
            ids = ids[:, : int(end.max()) + 1]
        return self._encode(self.token_embedding(ids), end)

    def encode_tokens(self, texts: Sequence[str]) -> tuple[Tensor, Tensor, Tensor]:
        """Encode K strings with the features of all of their tokens.

        Returns:
            (K, d) features of the strings, as `encode_text`; (K, T, d) features of tokens, through the final
            norm and the projection, not normalised; (K, T) bool, which tokens are not padding: the start and
            the end token are among them.

        Raises:
            UserError: the tower's own code hands out no features of tokens.
        """
        if not self.learnable:
            raise UserError(
                f"{self.description}: its text tower gives no features of single tokens; choose another model"
            )
        ids, end = self.tokenise(texts)
        if self.cuttable:
            ids = ids[:, : int(end.max()) + 1]
        tokens = self._hidden(self.token_embedding(ids))
        places = torch.arange(ids.shape[1], device=ids.device)
        return self._pooled(tokens, end), self._project(tokens), places <= end[:, None]

    def encode_embeddings(self, embeddings: Tensor, end: Tensor) -> Tensor:
        """Return (K, d) features of token embeddings.

        Args:
            embeddings: (K, T, w) float, start token first, T at most the context length.
            end: (K,) int64 position of the end-of-text token in each row. A causal tower does not
                read the tokens after it; other towers get padding up to their full length.

        Raises:
            UserError: the tower cannot take embeddings, or the sequences are too long.
        """
        if not self.learnable:
            raise UserError(
                f"{self.description}: learnt prompts need an open_clip text transformer without "
                f"class token and padding mask; choose another model or method"
            )
        length = embeddings.shape[1]
        if length > self.context_length:
            raise UserError(
                f"{self.description}: prompts of {length} tokens exceed its {self.context_length}"
            )
        if self.cuttable:
            embeddings = embeddings[:, : int(end.max()) + 1]
        elif length < self.context_length:
            padding = self.padding_embedding.to(embeddings.dtype)
            missing = self.context_length - length
            embeddings = torch.cat([embeddings, padding.expand(len(embeddings), missing, -1)], dim=1)
        return self._encode(embeddings, end)

    def encode_tree(self, embeddings: Tensor, positions: Tensor, mask: Tensor, ends: Tensor) -> Tensor:
        """Return (R, K, d) features of R sequences with K texts each, see `prompts.NameTree`.

        For `cuttable` towers.

        Args:
            embeddings: (R, N, w) token embeddings.
            positions: (N,) int64 position of each token in its own text.
            mask: (N, N) float, added to the attention's logits.
            ends: (K,) int64 indices of the texts' end tokens.
        """
        from open_clip.transformer import ResidualAttentionBlock

        x = embeddings + self.positional_embedding[positions]
        last = self.transformer.resblocks[-1]
        if isinstance(last, ResidualAttentionBlock) and self.transformer.batch_first:
            for block in self.transformer.resblocks[:-1]:
                x = block(x, attn_mask=mask)
            # Only the end tokens' output of the last block is read.
            seen = last.ln_1(x)
            found = last.attention(seen.index_select(1, ends), seen, seen, attn_mask=mask[ends])
            x = x.index_select(1, ends) + last.ls_1(found)
            x = x + last.ls_2(last.mlp(last.ln_2(x)))
        else:
            x = self.transformer(x, attn_mask=mask).index_select(1, ends)
        return self._project(self.ln_final(x))

    @property
    def padding_embedding(self) -> Tensor:
        """(1, 1, w) embedding of the padding token."""
        ids = self.tokenizer([""]).to(self.device)
        return self.token_embedding(ids[:, -1:])

    def _encode(self, embeddings: Tensor, end: Tensor) -> Tensor:
        return self._pooled(self._hidden(embeddings), end)

    def _hidden(self, embeddings: Tensor) -> Tensor:
        length = embeddings.shape[1]
        x = embeddings + self.positional_embedding[:length]
        mask = self.attn_mask[:length, :length] if self.attn_mask is not None else None
        return self.ln_final(self.transformer(x, attn_mask=mask))

    def _pooled(self, x: Tensor, end: Tensor) -> Tensor:
        if self.pool == "first":
            x = x[:, 0]
        elif self.pool == "last":
            x = x[:, -1]
        else:
            x = x[torch.arange(len(x), device=x.device), end]
        return self._project(x)

    def _project(self, x: Tensor) -> Tensor:
        if self.text_projection is None:
            return x
        if isinstance(self.text_projection, nn.Linear):
            return self.text_projection(x)
        return x @ self.text_projection

    def _end(self, ids: Tensor) -> Tensor:
        """(K,) position that the tower pools at, or of the last token that is not padding."""
        if self.pool == "eos":
            return (ids == self.eos_id).int().argmax(dim=1)
        if self.pool == "argmax":
            return ids.argmax(dim=1)
        padding = self.tokenizer([""]).to(ids.device)[:, -1:]
        return (ids != padding).int().cumsum(dim=1).argmax(dim=1)
