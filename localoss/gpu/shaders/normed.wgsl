// What tiles.wgsl multiplies: norm(x) but for its factor, which is known once all of a lone token's x was read.
// That is on the way: the two threads that share each four columns both count them.
@group(0) @binding(7) var<storage, read> norm_weight: array<vec4<f32>>;
var<private> squares: f32;

fn input(row: u32, column: u32) -> vec4<f32> {
  let v = x[row + column];
  squares += dot(v, v);
  return v * norm_weight[column];
}

// After `multiply`, by all threads: what its products are to be multiplied by.
fn norm_factor(thread: u32) -> f32 {
  return 1.0 / sqrt(sum_of(squares, thread) / f32(2u * 32u * BLOCKS) + EPS);
}
