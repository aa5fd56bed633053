// One of the two products of each expert, over runs of places: see sorted.wgsl and alone.wgsl. A workgroup takes a
// row group and a run, if the run's expert is among those in `codes`: their bytes as they lie in the model's file.
// GATE_UP: out (P, ROWS / 2) = SwiGLU(W @ x[source of the place] + bias), rows being gate, up, gate, up ...; of a
// lone token with norm(x): see normed.wgsl.
// else: out (P, ROWS) = W @ x[place] + bias.
struct Part { first_expert: u32, end_expert: u32 }

@group(0) @binding(0) var<storage, read> codes: array<vec4<u32>>;
@group(0) @binding(1) var<storage, read> scales: array<u32>;  // the same bytes: also of the biases
@group(0) @binding(2) var<storage, read> x: array<vec4<f32>>;
@group(0) @binding(3) var<storage, read_write> out: array<f32>;
@group(0) @binding(6) var<uniform> part: Part;

fn biased(m: u32, row: u32, bias: u32, factor: f32) -> f32 {
  return products[m * THREADS + row / 4u][row % 4u] * factor + bitcast<f32>(scales[bias + row]);
}

@compute @workgroup_size(THREADS)
fn main(@builtin(workgroup_id) id: vec3<u32>, @builtin(local_invocation_index) thread: u32) {
  let run = run_of(id.y, thread);
  if (run.z == 0u || run.x < part.first_expert || run.x >= part.end_expert) {
    return;
  }
  var rows: array<u32, M>;
  for (var m = 0u; m < M; m++) {
    let place = run.y + min(m, run.z - 1u);
    if (GATE_UP) {
      rows[m] = source_of(place) * 8u * BLOCKS;
    } else {
      rows[m] = place * 8u * BLOCKS;
    }
  }
  let begin = (run.x - part.first_expert) * EXPERT_WORDS;
  let tile = id.x * BLOCKS;
  multiply((begin + CODES_WORD) / 4u + tile * CODE_VECTORS, begin + SCALES_WORD + tile * SCALE_WORDS, rows, thread);
  let bias = begin + BIAS_WORD + 8u * id.x;
  let factor = norm_factor(thread);
  if (GATE_UP) {
    let m = thread / 4u;
    if (m < min(M, run.z)) {
      let row = 2u * (thread % 4u);
      let gate = min(biased(m, row, bias, factor), LIMIT);
      let up = clamp(biased(m, row + 1u, bias, factor), -LIMIT, LIMIT);
      out[(run.y + m) * (ROWS / 2u) + 4u * id.x + row / 2u] = (up + 1.0) * gate / (1.0 + exp(-ALPHA * gate));
    }
  } else {
    let m = thread / 8u;
    if (m < min(M, run.z)) {
      out[(run.y + m) * ROWS + 8u * id.x + thread % 8u] = biased(m, thread % 8u, bias, factor);
    }
  }
}
