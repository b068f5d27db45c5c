"""The first example of README: a small network on scikit-learn's digits, with wrong labels that its values find."""

import numpy as np
from sklearn.datasets import load_digits
from torch import nn

import rayinf

pixels, digit = load_digits(return_X_y=True)
label, wrong = digit.copy(), np.random.default_rng(0).choice(1200, size=60, replace=False)
label[wrong] = (digit[wrong] + 3) % 10  # 60 of the 1,200 training rows get a wrong label
train, valid = (pixels[:1200] / 16, label[:1200]), (pixels[1200:] / 16, label[1200:])

network = nn.Sequential(nn.Linear(64, 48), nn.ReLU(), nn.Linear(48, 10))
task = rayinf.Task(network, l2=1e-2, fit=rayinf.Fit(lr=1e-2, epochs=30, weight_decay=1e-2))
task = rayinf.retrain(task, train)  # or train it yourself: rayinf.Task(trained_network, ...)

scores = rayinf.influence(task, train, valid, objective=["total", "category"])
worst = scores.to_pandas().nsmallest(60, "total")
worst["harms_most"] = worst.filter(like="category_").idxmin(axis=1)
worst["label"], worst["digit"] = label[worst.row_id], digit[worst.row_id]
print(worst[["row_id", "label", "digit", "total", "harms_most"]].head(5).round(2).to_string(index=False))
print(np.isin(worst.row_id, wrong).sum(), "of the 60 rows of lowest value have a wrong label")
