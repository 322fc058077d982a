"""The language model as the policy, and a Decision Transformer on its backbone."""
