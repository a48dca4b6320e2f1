"""Looking inside a model: pages on which a text shows what each head looks at, and how much each token surprises."""

from transformer.reporting.attention_page import attention_page
from transformer.reporting.token_page import tokens_page

__all__ = ["attention_page", "tokens_page"]
