"""A frozen reference: PRONG on a small tanh network, in canonical coordinates and NumPy alone.

Written from the closed form and not from the library: with P = (Σ + εI)⁻¹ and canonical gradients
g_W, g_b, a step moves ΔW = −η (m_W − m_b cᵀ) P and Δb = −η m_b − ΔW c. Here no V, U, root or
transport exists: momentum is a plain running sum of canonical gradients.
"""

from __future__ import annotations

import numpy as np


def softmax(logits):
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    return shifted / shifted.sum(1, keepdims=True)


class ReferenceNetwork:
    """h → tanh(W h + b) … → softmax; `weights` and `biases` are lists, one entry per layer."""

    def __init__(self, weights, biases):
        self.weights = [w.copy() for w in weights]
        self.biases = [b.copy() for b in biases]

    def inputs(self, x):
        inputs = [x]
        for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
            inputs.append(np.tanh(inputs[-1] @ weight.T + bias))
        return inputs

    def gradients(self, x, labels):
        """Mean cross-entropy's gradients, and the inputs of every layer."""
        inputs = self.inputs(x)
        delta = softmax(inputs[-1] @ self.weights[-1].T + self.biases[-1])
        delta[np.arange(len(x)), labels] -= 1
        delta /= len(x)
        result = [None] * len(self.weights)
        for i in reversed(range(len(self.weights))):
            result[i] = (delta.T @ inputs[i], delta.sum(0))
            if i:
                delta = (delta @ self.weights[i]) * (1 - inputs[i] ** 2)
        return result, inputs


class ReferencePRONG:
    """Algorithm 1 in closed form, with SGD, momentum and step control."""

    def __init__(self, network, *, lr, momentum, damping, period, window, rule, limit=None):
        self.network, self.lr, self.momentum = network, lr, momentum
        self.damping, self.period, self.window, self.rule = damping, period, window, rule
        self.limit = limit
        sizes = [w.shape for w in network.weights]
        self.precisions = [np.eye(n) for _, n in sizes]
        self.centres = [np.zeros(n) for _, n in sizes]
        self.memory = [(np.zeros(s), np.zeros(s[0])) for s in sizes]
        self.seen = [[] for _ in sizes]
        self.steps = 0
        self.norms = [np.sqrt(np.sum(w**2)) for w in network.weights]
        self.scales = [1.0 for _ in sizes]

    def natural(self, i, g_weight, g_bias):
        """The canonical step that a canonical covector stands for, without −η."""
        step = (g_weight - np.outer(g_bias, self.centres[i])) @ self.precisions[i]
        return step, g_bias - step @ self.centres[i]

    def step(self, x, labels):
        gradients, inputs = self.network.gradients(x, labels)
        for seen, h in zip(self.seen, inputs, strict=True):
            seen.append(h)
        if self.limit is not None:
            for i, (g_weight, g_bias) in enumerate(gradients):
                centred = g_weight - np.outer(g_bias, self.centres[i])
                square = np.sum((centred @ self.precisions[i]) * centred) + np.sum(g_bias**2)
                least = 0.1 * np.sqrt(len(g_bias))
                allowed = self.limit / np.sqrt(1 + self.steps / 50) * max(self.norms[i], least)
                share = self.lr * np.sqrt(square) / allowed
                scale = self.scales[i] = min(1.0, share**0.3) / share
                gradients[i] = (scale * g_weight, scale * g_bias)
        for i, (g_weight, g_bias) in enumerate(gradients):
            m_weight = self.momentum * self.memory[i][0] + g_weight
            m_bias = self.momentum * self.memory[i][1] + g_bias
            self.memory[i] = (m_weight, m_bias)
            d_weight, d_bias = self.natural(i, m_weight, m_bias)
            self.network.weights[i] -= self.lr * d_weight
            self.network.biases[i] -= self.lr * d_bias
        self.steps += 1
        if self.steps % self.period == 0:
            self.refresh()

    def refresh(self):
        for i, seen in enumerate(self.seen):
            h = np.concatenate(seen[-self.window :])
            self.centres[i] = h.mean(0)
            covariance = (h - self.centres[i]).T @ (h - self.centres[i]) / len(h)
            damped = covariance + self.damping * np.eye(h.shape[1])
            self.precisions[i] = np.linalg.inv(damped)
            weight = self.network.weights[i]
            self.norms[i] = np.sqrt(np.sum((weight @ damped) * weight))
            seen.clear()
            if self.rule == "reset":
                self.memory[i] = tuple(np.zeros_like(m) for m in self.memory[i])
