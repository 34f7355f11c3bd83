"""Writes tests/golden/nuts_linear_gate.npz: what NUTS says of the linear gate on the real table.

    python tests/golden/make_nuts_golden.py

Posterior means and standard deviations of π at all 160 contexts of tests/data/rt_table.npz and of Ω
at every eighth, τ = 1, from 2 chains; refuses to write unless every R-hat is at most 1.02 and no
transition diverged. Some minutes on two cores.
"""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
from numpyro.diagnostics import gelman_rubin

from mop_jax.inference import fit_nuts, gate_at
from mop_jax.models import full_table_data

HERE = Path(__file__).parent
NUM_CHAINS = 2


def main() -> None:
    """Samples, checks, writes."""
    with np.load(HERE.parent / "data" / "rt_table.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    data = full_table_data(
        log_likelihood=arrays["log_likelihood"],
        **{name: arrays[name] for name in arrays if name.endswith("_embeddings")},
    )
    posterior, mcmc = fit_nuts(
        jax.random.key(0),
        data,
        model_kwargs={"gate": "linear", "temperature": False},
        num_warmup=300,
        num_samples=600,
        num_chains=NUM_CHAINS,
        progress=False,
    )
    gate = gate_at(posterior, data.context_embeddings)
    draws = {
        "persona": np.exp(np.asarray(gate.persona_log_probs, np.float64)),
        "exemplar": np.exp(np.asarray(gate.exemplar_log_probs()[:, ::8], np.float64)),
    }
    divergences = int(mcmc.get_extra_fields()["diverging"].sum())
    r_hat = max(
        float(gelman_rubin(d.reshape(NUM_CHAINS, -1, *d.shape[1:])).max()) for d in draws.values()
    )
    print(f"largest R-hat {r_hat:.3f}, {divergences} divergences")
    if divergences or r_hat > 1.02:
        raise SystemExit("The chains cannot be trusted; nothing was written.")
    np.savez_compressed(
        HERE / "nuts_linear_gate.npz",
        **{f"{name}_mean": d.mean(0).astype(np.float32) for name, d in draws.items()},
        **{f"{name}_sd": d.std(0).astype(np.float32) for name, d in draws.items()},
    )


if __name__ == "__main__":
    main()
