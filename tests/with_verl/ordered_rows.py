"""A replay buffer whose batches do not depend on which completion was ready first.

verl orders rows by when they came, and mini-batches are made of neighbors; two runs can only be
compared where the order is the same.
"""

from __future__ import annotations

import transfer_queue
from verl.trainer.ppo.v1.replay_buffer import ReplayBuffer


class OrderedRows(ReplayBuffer):
    def _materialize_batch(self, partition_id, selected_prompt_uids, partition_snapshot):
        asked = list(self.prompt_global_steps[partition_id])
        batch = super()._materialize_batch(partition_id, selected_prompt_uids, partition_snapshot)
        written = transfer_queue.kv_batch_get(
            keys=batch.keys, partition_id=partition_id, select_fields=["responses"]
        )["responses"]
        content = [each.tolist() for each in written.unbind()]
        batch.reorder(
            sorted(
                range(len(batch.keys)),
                key=lambda i: (asked.index(batch.keys[i].split("_")[0]), content[i]),
            )
        )
        return batch
