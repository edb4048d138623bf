"""The plain form of a conversation, for models whose tokenizer has no chat template.

Chatting and tuning write it alike: what the model learned to answer is what it will be asked.
"""

from __future__ import annotations

# By the role of a message; the model's answers begin with the space that follows `Assistant:`.
PLAIN = {"system": "{}\n", "user": "User: {}\nAssistant:", "assistant": "{}\n"}
