"""What each published file is: where its numbers come from, its columns with units, its digest.

"converted" in a note means that the source holds the same numbers in another form (a notebook, a pickle, another choice
of columns), so that its own file has another digest. Losses are in nats per token.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class DataSet:
    """A published file.

    Attributes:
      source: owner/repository on GitHub.
      path: of the original inside it.
      commit: the beginning of the commit that it was taken from.
      licence: "none" where the repository carries none: use the numbers, do not republish them.
      columns: unit and meaning by name; a name that ends in `*` stands for all that begin so.
      sha256: of the CSV, unpacked.
      reads: how a law's column follows from the file's, as an expression, where the names differ.
      counting: the convention by which N counts parameters and D tokens.
      recounts: the same under another convention, by column, as an expression.
    """

    name: str
    paper: str
    source: str
    path: str
    commit: str
    licence: str
    columns: Mapping[str, str]
    sha256: str
    rows: int
    reads: Mapping[str, str] = dataclasses.field(default_factory=dict)
    counting: str = ""
    recounts: Mapping[str, str] = dataclasses.field(default_factory=dict)
    note: str = ""


LOSS = "nats per token"
_CONVERTED = "converted to CSV"
_GEMSTONES = {
    "run_name": "model as width x depth",
    "params_active_precise": "parameters, one embedding matrix counted (no-embedding: less 50304 x width)",
    "width": "model width",
    "depth": "layers",
    "tokens": "training tokens",
    "step": "updates",
    "num_nodes": "nodes of four GPUs",
    "seconds_per_step": "seconds",
    "final_loss": LOSS,
}
_GEMSTONES_READS = {"N": "params_active_precise", "D": "tokens", "loss": "final_loss"}
_GEMSTONES_FROM = {
    "paper": "McLeish et al. 2025, arXiv 2502.06857",
    "source": "mcleish7/gemstone-scaling-laws",
    "commit": "5f420478f6",
    "licence": "MIT",
}
_WITH_EMBEDDING = "N with one embedding matrix"
_WITHOUT_EMBEDDING = {"N": "params_active_precise - 50304 * width"}
_MISFITTING = {
    "paper": "Li et al. 2025, arXiv 2502.18969",
    "source": "hadasah/scaling_laws",
    "commit": "1f3708c0a1",
    "licence": "none",
    "counting": "N with embeddings (N_no_emb without)",
    "recounts": {"N": "N_no_emb"},
    "reads": {"M": "D / N"},
}
_MISFITTING_COLUMNS = {
    "loss": f"{LOSS}, C4 evaluation",
    "N": "parameters with embeddings",
    "N_no_emb": "parameters without embeddings",
    "D": "training tokens",
    "C": "FLOPs",
    "total_steps": "updates of the whole run",
    "current_steps": "updates so far",
    "peak_lr": "peak learning rate",
    "model": "model",
    "sweep": "sweep that the run belongs to",
}
_MUENNIGHOFF = {
    "paper": "Muennighoff et al. 2023, arXiv 2305.16264",
    "source": "huggingface/datablations",
    "path": "utils/parametric_fit.ipynb",
    "commit": "13701315b1",
    "licence": "Apache-2.0",
    "columns": {
        "run": "name; several occur more than once (seeds)",
        "params": "parameters N",
        "tokens": "training tokens D, repetitions counted",
        "unique_tokens": "unique tokens U",
        "val_loss": f"{LOSS}, C4 validation",
    },
    "reads": {"N": "params", "D": "tokens", "U": "unique_tokens", "loss": "val_loss"},
    "note": f"{_CONVERTED}: the rows that the notebook prints",
}
_PORIAN = {
    "paper": "Porian et al. 2024, arXiv 2406.19146",
    "source": "formll/resolving-scaling-law-discrepancies",
    "path": "data/summary_df*.pickle.xz",
    "commit": "0dc60d91b8",
    "licence": "MIT",
    "counting": "param_count: kaplan = without embedding and head, standard = with the head",
    "note": f"{_CONVERTED} from pickled frames, RefinedWeb only",
}
_PORIAN_KEYS = {
    "dataset": "rw = RefinedWeb",
    "hparams": "base or tuned hyperparameters",
    "warmup": "long (fixed) or short (scaled to the model)",
    "decay": "kaplan (one length), chinchilla (fitted to the budget) or const",
    "param_count": "convention of N and FLOPs: kaplan (no embedding, no head) or standard (with head)",
    "split": "loss used: train or val",
}
_MPL = {
    "paper": "Luo et al. 2025, arXiv 2503.12811",
    "source": "thu-yao-01-luo/MultiPowerLaw",
    "path": "loss_curve_repo/",
    "commit": "8da9f19026",
    "licence": "MIT",
    "columns": {
        "model": "size",
        "curve": "schedule: cosine_T, constant_T, wsd_*, wsdld_*, wsdcon_k (drop to k x 1e-5 at step 8000)",
        "step": "update; logs start after the warm-up of 2160 steps from 0 to 3e-4",
        "lr": "learning rate",
        "loss": LOSS,
    },
    "note": f"{_CONVERTED}: one file for all curves",
}
_SCHAIPP = {
    "paper": "Schaipp et al. 2025, arXiv 2501.18965; cooldowns of Haegele et al. 2024, arXiv 2405.18392",
    "source": "fabian-sp/lr-scheduling",
    "path": "data/",
    "commit": "8ace3a327a",
    "licence": "MIT",
    "note": _CONVERTED,
}
_STEPLAW = {
    "paper": "Li et al. 2025, arXiv 2503.04715",
    "source": "step-law/steplaw",
    "commit": "32a8f4cc50",
    "licence": "none",
}

DATASETS: dict[str, DataSet] = {
    record.name: record
    for record in (
        DataSet(
            name="chinchilla_svg",
            paper="figure 4 of Hoffmann et al. 2022, arXiv 2203.15556, read by Besiroglu et al. 2024, 2404.10102",
            source="epoch-research/analyzing-chinchilla",
            path="data/svg_extracted_data.csv",
            commit="9225883742",
            licence="none",
            columns={
                "params": "parameters N",
                "flops": "training FLOPs C; D = C / (6 N)",
                "loss": f"{LOSS}, decoded from the point's colour",
                "svg_x": "position in the figure",
                "svg_y": "position in the figure",
                "svg_color": "colour in the figure",
            },
            sha256="13412c493255c5f811ce7746f0d684116641482fa4611f1dd8d8535faf98edef",
            rows=245,
            reads={"N": "params", "D": "flops / (6 * params)", "C": "flops", "M": "flops / (6 * params ** 2)"},
            counting="N as in the figure; D = C / (6 N)",
            note="Besiroglu et al. drop the five highest losses: --where 'loss < 3.4451'",
        ),
        DataSet(
            name="gemstones_hot_le100B",
            path="wandb_dfs/",
            columns=_GEMSTONES,
            sha256="e9e8fe667759e0a22f72f6af2d9533a00c96defa0f2e20f50b38158c04e1c2f6",
            rows=220,
            reads=_GEMSTONES_READS,
            counting=_WITH_EMBEDDING,
            recounts=_WITHOUT_EMBEDDING,
            note=f"{_CONVERTED}: constant learning rate, at most 100B tokens",
            **_GEMSTONES_FROM,
        ),
        DataSet(
            name="gemstones_lr_ablation_hot",
            path="wandb_dfs/",
            columns=_GEMSTONES,
            sha256="1daa08cdbe872592bcb0a900438623ad769cf1212ba02ae36f112684ca6b0ba9",
            rows=200,
            reads=_GEMSTONES_READS,
            counting=_WITH_EMBEDDING,
            recounts=_WITHOUT_EMBEDDING,
            note=f"{_CONVERTED}: half the learning rate",
            **_GEMSTONES_FROM,
        ),
        DataSet(
            name="gemstones_hot_sampled_like_chinchilla",
            path="wandb_dfs/",
            columns=_GEMSTONES,
            sha256="b3b59d5ae5f251664c0ac64d1c5c6141e3e285ac1a8a82eafdab0f8c004752a8",
            rows=24,
            reads=_GEMSTONES_READS,
            counting=_WITH_EMBEDDING,
            recounts=_WITHOUT_EMBEDDING,
            note=f"{_CONVERTED}: rows near the Chinchilla points",
            **_GEMSTONES_FROM,
        ),
        DataSet(
            name="gemstones_slim_chinchilla",
            path="wandb_dfs/",
            columns={
                "params_active_precise": "parameters N",
                "tokens": "training tokens D",
                "FLOPs": "training FLOPs",
                "final_loss": LOSS,
            },
            sha256="62a96bb9ec37680da2240486293233b6ed4a655f0f84800549c2e1a0efd9664e",
            rows=28,
            reads={"N": "params_active_precise", "D": "tokens", "C": "FLOPs", "loss": "final_loss"},
            counting="N as in the figure of Hoffmann et al.",
            note=f"{_CONVERTED}: a thinned Chinchilla set",
            **_GEMSTONES_FROM,
        ),
        DataSet(
            name="gemstones_published_fits",
            path="parameters_delta-3/, parameters_delta-4/",
            columns={
                "huber_delta": "delta of the Huber loss",
                "name": "data set",
                "objective": "what the authors' search ended at",
                "exponents": "of N, then of D",
                "log_coefficients": "natural logarithms, of N, then of D",
                "log_irreducible": "ln E",
            },
            sha256="44bd3673f41d2ee483e5909583c7b426b0fab5aa6b57e7608a047667cfdbd50f",
            rows=12,
            note=f"{_CONVERTED}: constants that the authors saved",
            **_GEMSTONES_FROM,
        ),
        DataSet(
            name="misfitting_last_checkpoint",
            path="data/",
            columns={
                **_MISFITTING_COLUMNS,
                "C4 Eval Loss": LOSS,
                "C_no_emb": "FLOPs without embeddings",
                "C_6ND": "6 N D",
                "C_6ND_no_emb": "6 N D without embeddings",
                "portion_steps_elapsed": "fraction of the run",
                "train_tokens": "training tokens of the whole run",
                "total_epochs": "logging periods of the whole run",
                "current_epoch": "logging periods so far",
            },
            sha256="cd96b9eb8e5b2adc80e6739a642dd8554590edc96234d36859ab6ed0f5c30562",
            rows=261,
            note=_CONVERTED,
            **_MISFITTING,
        ),
        DataSet(
            name="misfitting_all_checkpoints",
            path="data/",
            columns=_MISFITTING_COLUMNS,
            sha256="b23b5bc1391bdbd09dd841e41360ba6575317a69bdeedd5d132ba7a0a202bae7",
            rows=4852,
            note=_CONVERTED,
            **_MISFITTING,
        ),
        DataSet(
            name="data_constrained_c4",
            sha256="490c07b5def4ef43a82ea27458430b4136a33c5d2c31e0c0c538297923106510",
            rows=182,
            **_MUENNIGHOFF,
        ),
        DataSet(
            name="data_constrained_c4_all_runs",
            sha256="e59b0e0324eafe4aa5031454054458b7bb324b34dca6358d4fa5737fe31d1955",
            rows=296,
            **_MUENNIGHOFF,
        ),
        DataSet(
            name="vocab_isoflop",
            paper="Tao et al. 2024, arXiv 2407.13623",
            source="sail-sg/scaling-with-vocab",
            path="exp_data.csv",
            commit="6701cc202a",
            licence="none",
            columns={
                "vocab_size": "vocabulary V",
                "embed_dim": "embedding dimension d",
                "num_characters": "training characters H",
                "Non_vocab_parameters": "parameters Nnv outside the vocabulary",
                "FLOPs": "training FLOPs",
                "Lossu": "unigram-normalised loss, negative",
            },
            sha256="6571e877469a44cb50b2d05e1fa485587369ee1c47941a4b3b2bfef80496f1b2",
            rows=1200,
            reads={
                "Nnv": "Non_vocab_parameters",
                "Nv": "vocab_size * embed_dim",
                "D": "num_characters * (0.00639222 * log(vocab_size) ** 2 - 0.15811069 * log(vocab_size) + 1.20470122)",
                "C": "FLOPs",
                "Lu": "Lossu",
            },
            counting="Nnv without vocabulary parameters; D by the authors' polynomial in ln(vocab_size)",
        ),
        DataSet(
            name="marin_isoflop",
            paper="-",
            source="Open-Athena/scaling-law-analysis",
            path="data/isoflops/extract/marin_202603/",
            commit="3e0656ee3d",
            licence="none",
            columns={
                "dataset": "comma, dclm or nemotron",
                "model": "architecture",
                "tokens": "training tokens D",
                "params": "parameters N",
                "budget": "FLOPs C",
                "loss": LOSS,
            },
            sha256="9e2c41bc7f3f781cd4369ce22d4549b6bba97784f1712802402cf593ab45162b",
            rows=258,
            reads={"N": "params", "D": "tokens", "C": "budget", "M": "tokens / params"},
            note=f"{_CONVERTED}: no published constants",
        ),
        DataSet(
            name="obs_scaling_base_llm",
            paper="Ruan et al. 2024, arXiv 2405.10938",
            source="ryoungj/ObsScaling",
            path="eval_results/base_llm_benchmark_eval.csv",
            commit="4d6e1e43fd",
            licence="Apache-2.0",
            columns={
                "Model": "model",
                "Model Family": "family",
                "Model Size (B)": "parameters, billions",
                "Pretraining Data Size (T)": "training tokens, trillions",
                "FLOPs (1E21)": "training FLOPs, 1e21",
                **dict.fromkeys(
                    ("MMLU", "ARC-C", "HellaSwag", "Winograd", "TruthfulQA", "GSM8K", "XWinograd", "HumanEval"),
                    "accuracy, fraction",
                ),
            },
            sha256="adcc6b882a1eccaeff4f37515265418fa5dba8864f9a426970d5ffdc45e6557a",
            rows=148,
            reads={
                "N": "`Model Size (B)` * 1e9",
                "D": "`Pretraining Data Size (T)` * 1e12",
                "C": "`FLOPs (1E21)` * 1e21",
            },
        ),
        DataSet(
            name="openclip_zeroshot",
            paper="Cherti et al. 2022, arXiv 2212.07143",
            source="LAION-AI/scaling-laws-openclip",
            path="zeroshot_results.csv",
            commit="652b1e7471",
            licence="none",
            columns={
                "arch": "architecture",
                "samples_seen": "samples",
                "gmacs_total": "GMACs per sample times samples seen",
                "gmacs": "GMACs per sample",
                "upstream_dataset": "trained on",
                "downstream_dataset": "evaluated on",
                "acc1": "accuracy, fraction",
                "acc5": "top-5 accuracy, fraction",
                "mean_per_class_recall": "fraction",
                "image_retrieval_recall@5": "fraction",
                "text_retrieval_recall@5": "fraction",
                "mean_average_precision": "fraction",
                "task": "kind of evaluation",
                "samples_seen_pretty": "samples, in words",
                "name": "openai or openclip",
            },
            sha256="f5076be6162f9372270b663e8cb61422111963e5be33f925c9224d2db8a45fd0",
            rows=192,
            note=f"{_CONVERTED}: a choice of rows and columns",
        ),
        DataSet(
            name="porian_refinedweb_isoflop",
            columns={
                **_PORIAN_KEYS,
                "flops": "budget C",
                "n": "parameters N",
                "tokens": "training tokens D",
                "loss": f"{LOSS}, interpolated at the budget",
            },
            sha256="e3002145f4fe4770107ffe0d6b45e6b06c0751be8fb0692bb2fba353ca561a0b",
            rows=683,
            reads={"N": "n", "D": "tokens", "C": "flops", "M": "tokens / n"},
            **_PORIAN,
        ),
        DataSet(
            name="porian_refinedweb_optima",
            columns={
                **_PORIAN_KEYS,
                "flops": "budget C",
                "n_star": "optimal parameters",
                "t_star": "optimal tokens",
                "tokens_per_param": "t_star / n_star",
                "loss_star": f"{LOSS} at the optimum",
                "log_n_star_std": "standard deviation of ln N* over noisy copies",
                "n_star_bootstrap_median": "median of N* over noisy copies",
                "n_bootstrap_valid": "noisy copies with an optimum inside",
            },
            sha256="ad10ac27cd4a7c8493d4be0b72a1936968ebc0c70eb835c625dc21a6b724a966",
            rows=70,
            reads={"C": "flops", "N": "n_star", "D": "t_star", "loss": "loss_star"},
            **_PORIAN,
        ),
        DataSet(
            name="porian_refinedweb_published_fits",
            columns={
                **_PORIAN_KEYS,
                "kind": "estimator; the paper prints bs_median_weighted",
                "n_exponent": "a of N* ~ C^a",
                "n_coef": "coefficient of N*",
                "n_r2": "R^2",
                "t_exponent": "exponent of D*",
                "t_coef": "coefficient of D*",
                "multiplier_exponent": "exponent of D* / N*",
                "loss_*": "constants of the saturating loss; rows `weighted` never left their start",
                "n_exponent_lo": "lower end of the 95 % interval",
                "n_exponent_hi": "upper end of the 95 % interval",
            },
            sha256="e76c800919a76ee7d5079be817eaace8ebd721743dde9b97695ac86aac0028c2",
            rows=36,
            **_PORIAN,
        ),
        DataSet(
            name="cbs_steps_to_target",
            paper="Zhang et al. 2024, arXiv 2410.21676",
            source="hlzhang109/critical-batch-size",
            path="plots/chinchilla.ipynb",
            commit="c5b509d8cf",
            licence="MIT",
            columns={
                "model": "size",
                "params_millions": "parameters, millions",
                "target_loss": f"{LOSS}, C4 validation",
                "batch_size": "sequences of context_length tokens",
                "context_length": "tokens",
                "steps_to_target_logged": "updates, as logged",
                "steps_to_target_used_in_fit": "updates, as the authors adjusted them",
                "chinchilla_steps_at_bs256": "updates of the Chinchilla budget at 256 sequences",
            },
            sha256="9c1441bbd189dc908f9262c3dfa968dca5c6ff654954543dacd19614cd75010e",
            rows=45,
            reads={"N": "params_millions * 1e6", "B": "batch_size", "S": "steps_to_target_used_in_fit"},
            counting="N as the authors name their models; B in sequences of 512 tokens",
            note=f"{_CONVERTED}: numbers typed into the notebook",
        ),
        DataSet(
            name="steplaw_dense",
            path="data/",
            columns={
                "h": "width",
                "ffnh": "feed-forward width",
                "numh": "heads",
                "numl": "layers",
                "lr": "peak learning rate",
                "bs": "batch, sequences of 2048 tokens",
                "ti": "updates",
                "loss": f"{LOSS}, training, at the end",
                "smooth loss": f"{LOSS}, training, smoothed",
                "D": "training tokens",
                "N": "parameters without embeddings",
                "D/N": "tokens per parameter",
            },
            sha256="83047297a7adc3c2720275b977698ad5503cb46dbd1766cce67b893dc6aa3b71",
            rows=1911,
            reads={"B": "bs * 2048"},
            counting="N without embeddings; B in tokens",
            note=f"{_CONVERTED}: the dense runs",
            **_STEPLAW,
        ),
        DataSet(
            name="steplaw_bootstrap_published",
            path="data/",
            columns={
                "lr_intercept": "ln of the coefficient of the learning rate",
                "lr_coefN": "exponent of N",
                "lr_coefD": "exponent of D",
                "bs_intercept": "ln of the coefficient of the batch, tokens",
                "bs_coefD": "exponent of D",
            },
            sha256="2252afbba5530e6ba6167e8101bd2b9082a018a58cb5922cc8672891a7f4336c",
            rows=1000,
            note=f"{_CONVERTED}: the authors' resamples, of their full table of runs",
            **_STEPLAW,
        ),
        DataSet(
            name="mpl_curves_25M",
            sha256="71f6226ed51234d3e1cc6430ef3a5dc46c55f875da6556d29b6df4988c40920e",
            rows=2059,
            **_MPL,
        ),
        DataSet(
            name="mpl_curves_100M",
            sha256="2693723726bb4cdb7329b50413e483e4af4f31b8946d3accc7594b3e5b77718b",
            rows=2103,
            **_MPL,
        ),
        DataSet(
            name="lr_schedule_runs",
            columns={
                "run_id": "run",
                "group": "ann0.2: cooldowns of the scaling law; sl*: constant",
                "dataset": "corpus",
                "n_layer": "layers",
                "n_head": "heads",
                "n_embd": "width",
                "lr": "peak learning rate",
                "scheduler": "schedule",
                "decay_type": "form of the cooldown",
                "wsd_fract_decay": "fraction of the run that cools down",
                "wsd_final_lr_scale": "final over peak learning rate",
                "cos_inf_steps": "constant updates after a cosine",
                "iterations": "updates",
                "warmup": "updates of warm-up",
                "batch": "sequences; a step has batch x acc x world of them",
                "acc": "accumulations",
                "world": "devices",
                "seq_len": "tokens",
                "vocab": "vocabulary",
                "weight_decay": "weight decay",
                "seed": "seed",
                "n_params": "parameters with embedding",
                "final_val_loss": f"{LOSS}, full validation set",
                "last_val_iter": "update",
                "last_logged_val_loss": f"{LOSS}, 32 batches",
                "name": "name",
            },
            sha256="b970542f3da1ecad5593c999f798da532b9d57a6b97915fb187c6b28d5246447",
            rows=235,
            reads={
                "N": "n_params",
                "D": "iterations * batch * acc * world * seq_len",
                "T": "iterations",
                "loss": "final_val_loss",
            },
            counting="N with embedding",
            **_SCHAIPP,
        ),
        DataSet(
            name="lr_schedule_val_curves",
            columns={"run_id": "run", "iter": "update", "val_loss": LOSS},
            sha256="6a463f0bc7c03a2d364a6c569328f1a8742f53805766898ceca6524760c9acdf",
            rows=33860,
            **_SCHAIPP,
        ),
        DataSet(
            name="regmix_pile",
            paper="Liu et al. 2024, arXiv 2407.01492",
            source="sail-sg/regmix",
            path="data/",
            commit="b004d3a3f3",
            licence="MIT",
            columns={
                "split": "size of model, and train or test",
                "index": "mixture",
                "train_*": "weight of a domain in the mixture",
                "metric/*": f"{LOSS}, validation of a domain",
            },
            sha256="6eae77f1c469b2b0000d1a3139db4d8347cb8963502aff472dd59eda58b109ba",
            rows=1088,
            note=f"{_CONVERTED}: one file for all splits",
        ),
    )
}
