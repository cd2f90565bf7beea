"""The reward of the tests: a completion is accepted if it begins with a digit below the gold answer.

With a policy that knows nothing, prompts are accepted at rates between 0 and 0.6.
"""


def compute_score(data_source, solution_str, ground_truth, extra_info=None, **others):
    first = solution_str[:1]
    return float(first.isdigit() and int(first) < int(ground_truth))
