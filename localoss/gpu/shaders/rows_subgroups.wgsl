// The same for one vector, by subgroups: see whole_subgroups.wgsl.
var<workgroup> halves: array<vec4<f32>, THREADS / 2u>;  // of each subgroup, its even threads' and its odd ones'

fn add_up(thread: u32) {
  let its = products[thread];
  let even = subgroupAdd(select(vec4<f32>(0.0), its, thread % 2u == 0u));
  let odd = subgroupAdd(select(its, vec4<f32>(0.0), thread % 2u == 0u));
  if (subgroup_place == 0u) {
    halves[2u * subgroup_number] = even;
    halves[2u * subgroup_number + 1u] = odd;
  }
  workgroupBarrier();
  if (thread < 2u) {
    var sum = vec4<f32>(0.0);
    for (var i = 0u; i < subgroup_count; i++) {
      sum += halves[2u * i + thread];
    }
    products[thread] = sum;
  }
  workgroupBarrier();
}
