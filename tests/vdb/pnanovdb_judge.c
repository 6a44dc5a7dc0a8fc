/* Looks voxels up in a NanoVDB file with nothing but PNanoVDB.h, the format's own C header.

   Usage: pnanovdb_judge FILE COORDINATES VALUES
   FILE is not compressed; its first grid is Float, or ValueOnIndex with a float channel first.
   COORDINATES are triples of int32; VALUES gets a float for each. Prints type, leaves, voxels. */
#define PNANOVDB_C
#define PNANOVDB_BUF_BOUNDS_CHECK
#include <nanovdb/PNanoVDB.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define FILE_HEADER 16
#define FILE_METADATA 176
#define NAME_SIZE_AT 136

static char *read_all(const char *path) {
  FILE *file = fopen(path, "rb");
  if (!file) exit(2);
  fseek(file, 0, SEEK_END);
  size_t size = (size_t)ftell(file);
  rewind(file);
  char *data = malloc(size);
  if (!data || fread(data, 1, size, file) != size) exit(2);
  fclose(file);
  return data;
}

static float look_up(pnanovdb_buf_t buf, pnanovdb_root_handle_t root, pnanovdb_uint32_t type,
                     const float *channel, const pnanovdb_coord_t *ijk) {
  pnanovdb_uint32_t level;
  pnanovdb_address_t address =
      pnanovdb_root_get_value_address_and_level(type, buf, root, ijk, &level);
  if (type != PNANOVDB_GRID_TYPE_ONINDEX) return pnanovdb_read_float(buf, address);
  return channel[level ? 0 : pnanovdb_leaf_onindex_get_value_index(buf, address, ijk)];
}

int main(int count, char **arguments) {
  if (count != 4) return 2;
  char *data = read_all(arguments[1]);
  pnanovdb_uint32_t name_size;
  pnanovdb_uint64_t size;
  memcpy(&name_size, data + FILE_HEADER + NAME_SIZE_AT, sizeof name_size);
  memcpy(&size, data + FILE_HEADER, sizeof size);
  pnanovdb_uint32_t *grid_data = aligned_alloc(32, size);
  memcpy(grid_data, data + FILE_HEADER + FILE_METADATA + name_size, size);

  pnanovdb_buf_t buf = pnanovdb_make_buf(grid_data, size / 4);
  pnanovdb_grid_handle_t grid = {pnanovdb_address_null()};
  pnanovdb_tree_handle_t tree = pnanovdb_grid_get_tree(buf, grid);
  pnanovdb_root_handle_t root = pnanovdb_tree_get_root(buf, tree);
  pnanovdb_uint32_t type = pnanovdb_grid_get_grid_type(buf, grid);
  const float *channel = NULL;
  if (type == PNANOVDB_GRID_TYPE_ONINDEX)
    channel = (const float *)((char *)grid_data +
        pnanovdb_grid_get_gridblindmetadata_value_address(buf, grid, 0).byte_offset);
  printf("%u %u %llu\n", type, pnanovdb_tree_get_node_count_leaf(buf, tree),
         (unsigned long long)pnanovdb_tree_get_voxel_count(buf, tree));

  FILE *voxels = fopen(arguments[2], "rb"), *values = fopen(arguments[3], "wb");
  if (!voxels || !values) return 2;
  pnanovdb_coord_t ijk;
  while (fread(&ijk, sizeof ijk, 1, voxels) == 1) {
    float value = look_up(buf, root, type, channel, &ijk);
    fwrite(&value, sizeof value, 1, values);
  }
  return fclose(values);
}
