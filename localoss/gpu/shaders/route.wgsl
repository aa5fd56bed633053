// Each token's experts and their weights: see chosen.wgsl. A workgroup per token; logits (T, LOGITS_ROW).
const THREADS = 64u;

@group(0) @binding(0) var<storage, read> router_logits: array<f32>;
@group(0) @binding(1) var<storage, read> router_bias: array<f32>;
@group(0) @binding(2) var<storage, read_write> expert_ids: array<u32>;  // (T, ACTIVE)
@group(0) @binding(3) var<storage, read_write> expert_weights: array<f32>;  // (T, ACTIVE)

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  choose(id.x * LOGITS_ROW, thread);
  if (thread < ACTIVE) {
    expert_ids[id.x * ACTIVE + thread] = chosen_ids[thread];
    expert_weights[id.x * ACTIVE + thread] = chosen_weight(thread);
  }
}
