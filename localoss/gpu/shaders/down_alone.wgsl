// The second product of a lone token's experts, weighted and added up: out (ROWS,) += sum of weight * (W @ x + bias)
// over those of its experts that are in `codes`; x (ACTIVE, 32 * BLOCKS). A workgroup takes a row group.
struct Part { first_expert: u32, end_expert: u32 }

@group(0) @binding(0) var<storage, read> codes: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> scales: array<u32>;  // the same bytes: also of the biases
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@group(0) @binding(6) var<uniform> part: Part;

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  choose(0u, thread);
  let tile = id.x * BLOCKS;
  var sum = 0.0;
  var rows: array<u32, M>;
  for (var a = 0u; a < ACTIVE; a++) {
    let expert = chosen_ids[a];
    if (expert < part.first_expert || expert >= part.end_expert) {
      continue;
    }
    let begin = (expert - part.first_expert) * EXPERT_WORDS;
    rows[0] = a * 8u * BLOCKS;
    multiply((begin + CODES_WORD) / 4u + tile * CODE_VECTORS, begin + SCALES_WORD + tile * SCALE_WORDS, rows, thread);
    if (thread < 8u) {
      let bias = bitcast<f32>(scales[begin + BIAS_WORD + 8u * id.x + thread]);
      sum += chosen_weight(a) * (products[thread / 4u][thread % 4u] + bias);
    }
    workgroupBarrier();
  }
  if (thread < 8u) {
    out[8u * id.x + thread] += sum;
  }
}
