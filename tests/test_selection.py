"Selection against an independent plain loop, and the published runs by name."
import numpy as np
import pandas as pd
import pytest
import ruptures
from sklearn.linear_model import LogisticRegression

from datacentric_w2s.core import Partition
from datacentric_w2s.probes import evaluate
from datacentric_w2s.selection import make_sources, run_selection
from datacentric_w2s.theory import Mixture, mixture_problem


def binseg(s):
    "The published code's threshold: the score right of ruptures' break, on its grid of five"
    s = np.sort(np.asarray(s, float))
    return s[ruptures.Binseg(model="l2").fit(s.reshape(-1, 1)).predict(n_bkps=1)[0]]


def plain_selection(problem, labels, sources, policy, kind, T, seed):
    "The published selection script in plain words: one row a round of source, rows, reward, density, both students' predictions"
    conf, x, y = 2 * np.abs(labels.p - .5), problem.w2s.x_strong, labels.p
    order = np.random.default_rng([seed, 0])
    queues = [list(order.permutation(s.rows)) for s in sources]
    batch = min(len(q) for q in queues) // T
    total, count = np.zeros(len(sources)), np.zeros(len(sources))
    bought, flagged, hard, scores, out = [], [], [], [], []
    for t in range(T):
        if policy == "oracle": s = int(np.argmax([np.mean(kind[a.rows] == "overlap") for a in sources]))
        elif (count == 0).any(): s = int(np.argmax(count == 0))
        else: s = int(np.argmax(total / count + np.sqrt(2 * np.log(T)) / count))
        rows, queues[s] = queues[s][:batch], queues[s][batch:]
        cut = binseg(conf[rows])
        easy_or_overlap = [r for r in rows if not conf[r] < cut]
        hard += [r for r in rows if conf[r] < cut]
        new = [max(x[r] @ x[h] for h in hard) for r in easy_or_overlap]
        scores += new
        found = [r for r, v in zip(easy_or_overlap, new) if v >= binseg(scores)]
        bought, flagged = bought + rows, flagged + found
        total[s], count[s] = total[s] + len(found) / len(rows), count[s] + 1
        out.append((t + 1, sources[s].name, len(bought), len(found) / len(rows), np.mean(kind[bought] == "overlap"), *(student(problem, x, y, r) for r in (bought, flagged))))
    return pd.DataFrame(out, columns=["round", "source", "rows", "reward", "density", "accuracy", "accuracy_overlap_only"])


def student(problem, x, p, rows):
    "scikit-learn's logistic regression on soft labels; nan without two labels"
    if len(rows) == 0: return np.nan
    n, l2 = len(rows), problem.preset.l2
    scale = x[rows].std(0) if problem.preset.standardize else np.ones(x.shape[1])
    z = lambda v: (v - x[rows].mean(0) * problem.preset.standardize) / np.where(scale > 0, scale, 1)
    fit = LogisticRegression(C=1 / (2 * n * l2), tol=1e-10, max_iter=20_000).fit(np.vstack([z(x[rows])] * 2), np.repeat([1, 0], n), sample_weight=np.concatenate([p[rows], 1 - p[rows]]))
    return np.mean(fit.predict(z(problem.test.x_strong)) == problem.test.y)


@pytest.fixture(scope="module")
def case():
    p = mixture_problem(Mixture.published(np.random.default_rng(3)), (500, 500, 500), seed=3)
    labels = evaluate(p, l2=1e-3).pseudolabels
    truth = Partition(p.w2s.kind, labels.conf, np.where(p.w2s.kind == "hard", np.nan, 0.), 0, 0, "true kinds")
    return p, labels, truth, make_sources(truth, (.1, .9), seed=3)


@pytest.mark.parametrize("policy", ["oracle", "reference_ucb"])
def test_a_run_is_the_plain_loop(case, policy):
    p, labels, truth, sources = case
    ours = run_selection(p, labels, sources, policy, truth=truth, rounds=12, seed=3, how="max_dot", jump=5)
    plain = plain_selection(p, labels, sources, policy, truth.kind, 12, 3)
    pd.testing.assert_frame_equal(ours[plain.columns.tolist()[:5]], plain.iloc[:, :5])
    for c in ("accuracy", "accuracy_overlap_only"): np.testing.assert_allclose(ours[c], plain[c], atol=2.5 / len(p.test))  # rows at the boundary
