# Installs the build, moves what was installed, and builds and runs the program beside this file against it: by
# find_package and by pkg-config. Arguments: build, generator, compiler, libraries (where an install has them).
cmake_minimum_required(VERSION 3.25)

function(run)
  execute_process(COMMAND ${ARGN} RESULT_VARIABLE result OUTPUT_VARIABLE out ERROR_VARIABLE out)
  if(NOT result EQUAL 0)
    file(REMOVE_RECURSE ${place})
    list(JOIN ARGN " " command)
    message(FATAL_ERROR "${command}\n${out}")
  endif()
  set(out "${out}" PARENT_SCOPE)
endfunction()

string(RANDOM LENGTH 12 name)
set(place ${build}/library-${name})
run(${CMAKE_COMMAND} --install ${build} --prefix ${place}/first)
file(RENAME ${place}/first ${place}/heed)

run(${place}/heed/bin/heed --version)
message(STATUS "${out}")
run(${CMAKE_COMMAND} -S ${CMAKE_CURRENT_LIST_DIR} -B ${place}/people -G ${generator} -D CMAKE_CXX_COMPILER=${compiler}
    -D CMAKE_PREFIX_PATH=${place}/heed)
file(STRINGS ${place}/people/CMakeCache.txt found REGEX "^heed_DIR:")
if(NOT found MATCHES "=${place}/heed/")
  message(FATAL_ERROR "another heed was found: ${found}")
endif()
run(${CMAKE_COMMAND} --build ${place}/people)
run(${place}/people/people)
message(STATUS "${out}")

set(ENV{PKG_CONFIG_PATH} ${place}/heed/${libraries}/pkgconfig)
run(sh -c "'${compiler}' -Werror '${CMAKE_CURRENT_LIST_DIR}/main.cpp' -o '${place}/by-pkg-config' \
           $(pkg-config --cflags --libs heed)")
run(${place}/by-pkg-config)
message(STATUS "${out}")
file(REMOVE_RECURSE ${place})
