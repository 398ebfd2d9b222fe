"""The paper's theorems as experiments: what `ntk verify` measures, judges and draws."""
